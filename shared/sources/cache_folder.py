"""The folder of the file cache on this host's disk, private to its user.

    blobs/SHA256       complete, verified files; a user holds a shared lock on the file
    uses/SHA256        empty; its mtime is the last use of the blob, whose own times must not change
    partial/KEY-PIN    the beginning of a file that is being downloaded, or whose download broke off
    locks/KEY          locked by the one process that downloads; holds the size of the file
    pins/NAME-AND-PIN  which digest a source had under a pin, as JSON

A KEY is the digest of the file if the source states it, otherwise a hash of the source's name and pin.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import CacheUnavailable

SETTING = "FLUX2_SOURCES_CACHE_DIR"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PRIVATE = 0o700
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class CacheEntry:
    """A file in the cache.

    Attributes:
        name: the sha256 of a complete file; the key and the pin of a partial one.
        used_at: Unix time of the last use.
    """

    path: Path
    kind: Literal["file", "partial"]
    name: str
    size_bytes: int
    used_at: float

    @property
    def key(self) -> str:
        """The key under which the file is, or was, downloaded."""
        return self.name.partition("-")[0]


class CacheFolder:
    """The places in a cache folder, which is created when it is first needed.

    Attributes:
        root: the folder itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.blobs = self.root / "blobs"
        self.uses = self.root / "uses"
        self.partials = self.root / "partial"
        self.locks = self.root / "locks"
        self.pins = self.root / "pins"

    def prepare(self) -> None:
        """Create the folder and its parts for this user alone.

        Raises:
            CacheUnavailable: the folder cannot be created, or another user can change what is in it.
        """
        with self.naming_failures():
            self.root.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
            info = self.root.stat()
            if info.st_uid != os.geteuid() or info.st_mode & _WRITABLE_BY_OTHERS:
                raise CacheUnavailable(
                    f"{SETTING} {self.root} belongs to another user or can be written by others, who could replace "
                    "files; name a folder in it that does not exist yet"
                )
            for part in (self.blobs, self.uses, self.partials, self.locks, self.pins):
                self._prepare_part(part)

    def _prepare_part(self, part: Path) -> None:
        with suppress(FileExistsError):
            part.mkdir(mode=_PRIVATE)
        info = part.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise CacheUnavailable(
                f"{part} is a link, no folder, or another user's; remove it, or set {SETTING} to another folder"
            )
        if stat.S_IMODE(info.st_mode) != _PRIVATE:
            part.chmod(_PRIVATE)

    def exists(self) -> bool:
        """Return whether the cache was ever used."""
        return self.blobs.is_dir()

    def touch(self, sha256: str) -> None:
        """Record the use of a complete file now."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self.naming_failures():
            descriptor = os.open(self.uses / sha256, flags, 0o600)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def entries(self) -> list[CacheEntry]:
        """Return all files, the least recently used first."""
        files = [
            CacheEntry(path, "file", path.name, size, self._used_at(path, at)) for path, size, at in _scan(self.blobs)
        ]
        return sorted((*files, *self.partial_entries()), key=lambda entry: (entry.used_at, entry.name))

    def partial_entries(self) -> list[CacheEntry]:
        """Return the files that are not complete."""
        return [CacheEntry(path, "partial", path.name, size, at) for path, size, at in _scan(self.partials)]

    def _used_at(self, blob: Path, fallback: float) -> float:
        try:
            return (self.uses / blob.name).lstat().st_mtime
        except FileNotFoundError:
            return fallback

    @contextmanager
    def naming_failures(self) -> Iterator[None]:
        """Turn each failure of the file system in the block into a `CacheUnavailable` that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise CacheUnavailable(
                    f"the disk of {SETTING} {self.root} is full; free space, lower FLUX2_SOURCES_CACHE_MAX_BYTES, or "
                    "choose a folder on another disk"
                ) from error
            raise CacheUnavailable(
                f"{SETTING} {self.root} cannot be used: {error.strerror or error}; choose a folder that this user can "
                "write, or run the command as the user of the workers"
            ) from error


def _scan(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield path, size and mtime of each regular file in a folder."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        # Another process may delete the file at any moment.
        with suppress(FileNotFoundError):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                yield path, info.st_size, info.st_mtime


def age_s(entry: CacheEntry) -> float:
    """Return the seconds since the last use of a file."""
    return time.time() - entry.used_at
