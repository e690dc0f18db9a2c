"""The complete files of the cache: find a sound one and keep it from being removed, or make a new one visible."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from shared.adapters.identity import identify
from shared.errors import AdapterRefused
from shared.sources.cache_folder import CacheFolder
from shared.sources.locked_file import LockedFile, lock_shared

logger = logging.getLogger("flux2.sources")


@dataclass(frozen=True)
class CachedFile:
    """A complete, verified file, which stays in the cache until `close`; also a context manager.

    Attributes:
        fetched_bytes: bytes that this call received from the source; 0 if the file was in the cache.
    """

    path: Path
    sha256: str
    size_bytes: int
    fetched_bytes: int
    _lock: LockedFile

    def close(self) -> None:
        """Allow the file's removal."""
        self._lock.close()

    def __enter__(self) -> CachedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CompleteFiles:
    """The folder of complete files, named by their digests."""

    def __init__(self, folder: CacheFolder) -> None:
        self._folder = folder

    def find(self, sha256: str, *, size_bytes: int, fetched_bytes: int = 0) -> CachedFile | None:
        """Return the file with a digest if it is there and sound."""
        with ExitStack() as opened, self._folder.naming_failures():
            locked = lock_shared(self._folder.blobs / sha256)
            if locked is None:
                return None
            opened.push(locked)
            if not _is_sound(locked, sha256, size_bytes):
                logger.warning("damaged file in the cache is fetched again", extra={"file": str(locked.path)})
                return None
            self._folder.touch(sha256)
            opened.pop_all()
        return CachedFile(locked.path, sha256, size_bytes, fetched_bytes, locked)

    def publish(self, partial: LockedFile, sha256: str, *, fetched_bytes: int) -> CachedFile | None:
        """Make a verified file visible under its digest; its lock becomes the lock of the result.

        Returns:
            None if another process removed the file before the result had its lock.
        """
        size_bytes = os.fstat(partial.file.fileno()).st_size
        # Another source may have the same bytes, and a process may use that file: it must stay where it is.
        if (present := self.find(sha256, size_bytes=size_bytes, fetched_bytes=fetched_bytes)) is not None:
            partial.remove()
            partial.close()
            return present
        blob = self._folder.blobs / sha256
        with self._folder.naming_failures():
            os.rename(partial.path, blob)
            for place in (self._folder.blobs, self._folder.partials):
                _sync_folder(place)
            fcntl.flock(partial.file, fcntl.LOCK_SH)
        published = LockedFile(blob, partial.file)
        # flock(2) changes a lock in two steps, and between them someone who looks for unused files may get it.
        if not published.is_current():
            return None
        self._folder.touch(sha256)
        return CachedFile(blob, sha256, size_bytes, fetched_bytes, published)


def _is_sound(locked: LockedFile, sha256: str, size_bytes: int) -> bool:
    if os.fstat(locked.file.fileno()).st_size != size_bytes:
        return False
    try:
        # Hashed once for each process and stamp of the file; the reader of adapters uses the same digests.
        return identify(locked.file).sha256 == sha256
    except (AdapterRefused, FileNotFoundError):  # it is changed or replaced at this moment
        return False


def _sync_folder(place: Path) -> None:
    """Make a rename in a folder outlive a loss of power."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
