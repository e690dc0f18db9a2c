"""Find the file that `loras[].path` names; only files under the adapter root are allowed.

Paths come from callers, so errors must not reveal the host: a message repeats the path as the caller wrote it, and
never names the root or a path outside it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.adapters.nearest import find_nearest
from shared.errors import AdapterNotFound, AdapterRefused, RequestError
from shared.safetensors_header import SUFFIX

FIELD = "path"
_MAX_CHARS = 4096

# `hf:name` has no slashes and would pass as a relative path.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(https?|s3|gs|az|hf|ftp|file|data|gopher):", re.IGNORECASE)
_ENCODED = re.compile(r"%(2e|2f|5c|00|25)", re.IGNORECASE)


def locate_adapter(path: str, *, root: Path, allow_symlinks: bool = False) -> Path:
    """Return the path, under the resolved root, of the adapter file that a caller named.

    A symlink below the root is checked but returned unresolved.

    Args:
        path: relative to `root`, or absolute and inside it; always with `/` between its parts.
        root: the adapter folder; symlinks in it may point anywhere inside it.
        allow_symlinks: whether symlinks in the root may lead out of it. Only someone with access to the host can make
            one, so this trusts the operator and not the caller.

    Raises:
        AdapterNotFound: no file has that path.
        AdapterRefused: the path is malformed, leads outside the root, or is not a .safetensors file. `field` is
            "path", relative to the adapter's entry in the request.
    """
    if reason := _malformed(path):
        raise _refused(path, reason)
    try:
        base = root.resolve()
        named = _name_below(base, path, root=root)
        target = named.resolve()
        if not (target.is_relative_to(base) or (allow_symlinks and named.is_relative_to(base))):
            raise _leads_outside(path, named, base)
        _check_file(path, target)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_found(path, named, base, allow_symlinks=allow_symlinks) from error
    except (OSError, RuntimeError) as error:
        # Before Python 3.13 pathlib raises RuntimeError for a loop of symlinks.
        is_loop = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
        raise _refused(path, "cannot be read" + (": its links lead in a circle" if is_loop else "")) from error
    # Unresolved, so that the path relative to the root can be located again: in a Hugging Face cache only the link's
    # name has the suffix.
    return named if named.is_relative_to(base) else target


@contextmanager
def naming_root(root: Path) -> Iterator[None]:
    """Add the root's place to errors about adapters: for commands of people who have access to the host."""
    try:
        yield
    except (AdapterNotFound, AdapterRefused) as error:
        error.args = (f"{error}; the adapter root is {root.absolute()}",)
        raise


def _name_below(base: Path, path: str, *, root: Path) -> Path:
    """Return the path that the caller named, with symlinks; only an absolute one can be outside `base`."""
    named = Path(os.path.normpath(base / path))
    spelled = Path(os.path.abspath(root))
    # The root itself may be a symlink, by whose name an absolute path begins.
    return base / named.relative_to(spelled) if named.is_relative_to(spelled) else named


def _leads_outside(path: str, named: Path, base: Path) -> RequestError:
    reason = "leads outside the adapter root; only files under it are served"
    if (link := _find_link(named, base, lambda link: not link.resolve().is_relative_to(base))) is not None:
        reason += (
            f", and {link!r} is a link that leaves it. Copy the file into the adapter root, or set "
            "FLUX2_ADAPTERS_ALLOW_SYMLINKS=true for the workers and the API"
        )
    return _refused(path, reason)


def _not_found(path: str, named: Path, base: Path, *, allow_symlinks: bool) -> AdapterNotFound:
    message = f"no adapter at {path[:200]!r} under the adapter root (FLUX2_ADAPTERS_ROOT)"
    if not base.is_dir():
        message += ": the root does not exist; create it, or correct the setting"
    elif (link := _find_link(named, base, lambda link: not link.exists())) is not None:
        message += f": the target of the link {link!r} does not exist; correct the link"
    elif nearest := find_nearest(named.relative_to(base).as_posix(), base=base, follow_symlinks=allow_symlinks):
        message += f"; did you mean {' or '.join(map(repr, nearest))}?"
    else:
        message += "; `flux2 adapters` and GET /v1/adapters list what is there"
    return AdapterNotFound(message, field=FIELD)


def _find_link(named: Path, base: Path, is_wanted: Callable[[Path], bool]) -> str | None:
    """Return the first wanted symlink among the parts of a path below `base`, relative to `base`."""
    if not named.is_relative_to(base):
        return None
    parts = named.relative_to(base).parts
    links = (base.joinpath(*parts[: count + 1]) for count in range(len(parts)))
    return next((link.relative_to(base).as_posix() for link in links if link.is_symlink() and is_wanted(link)), None)


def _malformed(path: str) -> str | None:
    """Return the problem of the path's text, or None, without accessing the file system."""
    if not path:
        return "is empty"
    if len(path) > _MAX_CHARS:
        return f"has {len(path)} characters, and the limit is {_MAX_CHARS}"
    if scheme := _SCHEME.match(path):
        name = (scheme[1] or scheme[2]).lower()
        return f"is a {name} address; only files under the adapter root are served"
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in path):
        return "holds a character that no file name can have"
    if "\\" in path:
        return "holds a backslash; separate its parts with /"
    if _ENCODED.search(path):
        return "is percent-encoded; write the characters themselves"
    if ".." in path.split("/"):
        return "holds '..'; name a file below the adapter root"
    return None


def _check_file(path: str, target: Path) -> None:
    """Raise unless `target` is a file that can be an adapter."""
    mode = target.stat().st_mode
    if stat.S_ISDIR(mode):
        raise _refused(path, "is a directory, not a .safetensors file")
    # The caller's name, because in a Hugging Face cache the link's target has no suffix.
    if not path.lower().endswith(SUFFIX):
        raise _refused(path, "does not end in .safetensors")
    if not stat.S_ISREG(mode):
        raise _refused(path, "is not a regular file")


def _refused(path: str, reason: str) -> AdapterRefused:
    return AdapterRefused(f"{path[:200]!r} {reason}", field=FIELD)
