"""Find the file that `loras[].path` names; only files under the adapter root are allowed.

Paths come from callers, so errors must not reveal the host: a message repeats the path as the caller wrote it, and
never names the root or a path outside it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from shared.errors import AdapterNotFound, AdapterRefused

FIELD = "path"
_MAX_CHARS = 4096

# `hf:name` has no slashes and would pass as a relative path.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(https?|s3|gs|az|hf|ftp|file|data|gopher):", re.IGNORECASE)
_ENCODED = re.compile(r"%(2e|2f|5c|00|25)", re.IGNORECASE)


def locate_adapter(path: str, *, root: Path) -> Path:
    """Return the path, under the resolved root, of the adapter file that a caller named.

    A symlink below the root is checked but returned unresolved.

    Args:
        path: relative to `root`, or absolute and inside it; always with `/` between its parts.
        root: the adapter folder; symlinks in it may point anywhere inside it.

    Raises:
        AdapterNotFound: no file has that path.
        AdapterRefused: the path is malformed, leads outside the root, or is not a .safetensors file. `field` is
            "path", relative to the adapter's entry in the request.
    """
    if reason := _malformed(path):
        raise _refused(path, reason)
    try:
        base = root.resolve()
        named = Path(os.path.normpath(base / path))
        target = named.resolve()
        if not target.is_relative_to(base):
            raise _refused(path, "leads outside the adapter root; only files under it are served")
        _check_file(path, target)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterNotFound(f"no adapter at {path[:200]!r} under the adapter root", field=FIELD) from error
    except (OSError, RuntimeError) as error:
        # Before Python 3.13 pathlib raises RuntimeError for a loop of symlinks.
        raise _refused(path, "cannot be read") from error
    # Unresolved, so that the path relative to the root can be located again: in a Hugging Face cache only the link's
    # name has the suffix.
    return named if named.is_relative_to(base) else target


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
    if not path.lower().endswith(".safetensors"):
        raise _refused(path, "does not end in .safetensors")
    if not stat.S_ISREG(mode):
        raise _refused(path, "is not a regular file")


def _refused(path: str, reason: str) -> AdapterRefused:
    return AdapterRefused(f"{path[:200]!r} {reason}", field=FIELD)
