"""List the adapter files under the adapter root, one page at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".safetensors"
# Entries of folders that one page looks at: a root may hold many other files, and a call must not take seconds.
_MAX_ENTRIES = 20_000
# Folders below each other; the walk is recursive.
_MAX_DEPTH = 64


@dataclass(frozen=True)
class ListedFile:
    """A file under the adapter root, which has not been read.

    Attributes:
        path: relative to the root, with `/` between its parts, as in `loras[].path`.
        modified_s: seconds since the epoch.
    """

    path: str
    size_bytes: int
    modified_s: float


@dataclass(frozen=True)
class FilePage:
    """Files in the order of their paths; `next_after` is None on the last page.

    A page may be short, or empty, although more follow: its call looked at as many entries as it may.
    """

    files: list[ListedFile]
    next_after: str | None


def list_adapter_files(root: Path, *, after: str = "", limit: int, max_entries: int = _MAX_ENTRIES) -> FilePage:
    """Return the `.safetensors` files that follow the path `after`.

    Hidden files and folders, folders more than 64 levels down, files that cannot be read, and links that lead out of
    the root are left out. So are folders that are links: two of them could lead to each other.

    Args:
        after: `next_after` of the previous page.
    """
    base = root.resolve()
    files: list[ListedFile] = []
    for count, path in enumerate(_walk(base, (), tuple(after.split("/")) if after else ()), start=1):
        file = _describe(base, path) if path.endswith(_SUFFIX) else None
        if file is not None:
            files.append(file)
        if len(files) == limit or count == max_entries:
            return FilePage(files, path)
    return FilePage(files, None)


def _walk(base: Path, folder: tuple[str, ...], after: tuple[str, ...]) -> Iterator[str]:
    """Yield the path of each entry that is not a folder, in order; entries up to `after` are skipped unread."""
    try:
        with os.scandir(base.joinpath(*folder)) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        # The folder was deleted, or belongs to another user.
        return
    for entry in entries:
        parts = (*folder, entry.name)
        if parts < after[: len(parts)]:
            continue
        if entry.is_dir(follow_symlinks=False):
            if len(parts) < _MAX_DEPTH:
                yield from _walk(base, parts, after)
        elif parts > after:
            yield "/".join(parts)


def _describe(base: Path, path: str) -> ListedFile | None:
    file = base / path
    try:
        if not file.is_file() or not file.resolve().is_relative_to(base):
            return None
        status = file.stat()
        # The name must be text: JSON holds nothing else.
        path.encode()
    except (OSError, UnicodeEncodeError):
        return None
    return ListedFile(path, status.st_size, status.st_mtime)
