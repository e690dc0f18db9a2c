"""List the adapter files under the adapter root, one page at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.safetensors_header import SUFFIX

# Entries of folders that one page looks at: a root may hold many other files, and a call must not take seconds.
_MAX_ENTRIES = 20_000
# Folders below each other; the walk is recursive.
_MAX_DEPTH = 64
# Links to folders below each other. Folders that link to each other have a number of paths that grows with its power.
_MAX_LINKS = 3


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


def list_adapter_files(
    root: Path, *, after: str = "", limit: int, max_entries: int = _MAX_ENTRIES, allow_symlinks: bool = False
) -> FilePage:
    """Return the `.safetensors` files that follow the path `after`.

    Hidden files and folders, folders more than 64 levels down and files that cannot be read are left out. So are links
    that lead out of the root and all folders that are links, unless `allow_symlinks` is set.

    Args:
        after: `next_after` of the previous page.
        allow_symlinks: whether to follow links, up to three below each other. A link to one of the folders that it is
            in is not followed.
    """
    base = root.resolve()
    files: list[ListedFile] = []
    walk = _Walk(base, tuple(after.split("/")) if after else (), allow_symlinks)
    for count, path in enumerate(walk.entries(), start=1):
        file = _describe(base, path, allow_symlinks=allow_symlinks) if path.endswith(SUFFIX) else None
        if file is not None:
            files.append(file)
        if len(files) == limit or count == max_entries:
            return FilePage(files, path)
    return FilePage(files, None)


@dataclass(frozen=True)
class _Walk:
    """A walk through the folders below `base` in the order of their paths; entries up to `after` are skipped unread."""

    base: Path
    after: tuple[str, ...]
    follows_links: bool

    def entries(self) -> Iterator[str]:
        """Yield the path of each entry."""
        try:
            status = self.base.stat()
        except OSError:
            return
        yield from self._walk((), above=((status.st_dev, status.st_ino),), links=0)

    def _walk(self, folder: tuple[str, ...], *, above: tuple[tuple[int, int], ...], links: int) -> Iterator[str]:
        """Yield the entries of a folder.

        Args:
            above: identities of the folder and of those that it is in.
            links: number of them that were reached through a link.
        """
        try:
            with os.scandir(self.base.joinpath(*folder)) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            # The folder was deleted, or belongs to another user.
            return
        for entry in entries:
            parts = (*folder, entry.name)
            if parts < self.after[: len(parts)]:
                continue
            # Folders are yielded too: a page must end after a bounded number of them.
            if parts > self.after:
                yield "/".join(parts)
            identity = self._enterable(entry, above=above, links=links) if len(parts) < _MAX_DEPTH else None
            if identity is not None:
                yield from self._walk(parts, above=(*above, identity), links=links + entry.is_symlink())

    def _enterable(
        self, entry: os.DirEntry[str], *, above: tuple[tuple[int, int], ...], links: int
    ) -> tuple[int, int] | None:
        """Return the identity of a folder that the walk enters; None for anything else."""
        try:
            if not entry.is_dir(follow_symlinks=self.follows_links):
                return None
            status = entry.stat(follow_symlinks=self.follows_links)
        except OSError:
            # A loop of links, or a folder that was deleted.
            return None
        identity = (status.st_dev, status.st_ino)
        if entry.is_symlink() and (identity in above or links == _MAX_LINKS):
            return None
        return identity


def _describe(base: Path, path: str, *, allow_symlinks: bool) -> ListedFile | None:
    file = base / path
    try:
        if not file.is_file() or not (allow_symlinks or file.resolve().is_relative_to(base)):
            return None
        status = file.stat()
        # The name must be text: JSON holds nothing else.
        path.encode()
    except (OSError, UnicodeEncodeError):
        return None
    return ListedFile(path, status.st_size, status.st_mtime)
