"""Make room in the cache by removing the files that were used least recently, and never one that is in use."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.sources.cache_folder import CacheEntry, CacheFolder, age_s
from shared.sources.locked_file import LockedFile, is_locked, remove_unused, try_lock
from shared.sources.pin_index import PinIndex

logger = logging.getLogger("flux2.sources")

# A download that broke off longer ago is not continued: the job that wanted it has ended.
_STALE_PARTIAL_S = 86_400.0
_LOCK = "room"
_POLL_S = 0.01


@dataclass(frozen=True)
class Cleared:
    """What `Room.clear` removed, and what it left because a process uses it."""

    removed: int
    removed_bytes: int
    in_use: int
    in_use_bytes: int


class Room:
    """Keeps the files of a cache folder, and those on their way into it, within a number of bytes."""

    def __init__(self, folder: CacheFolder, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def reserve(self, download: LockedFile, *, size_bytes: int) -> str | None:
        """Make room for a download, or return the reason why that is impossible now.

        Args:
            download: the lock on the download's key; holds the reservation until it is closed.
        """
        # One process at a time: two would each count on the same free bytes.
        with self._lock(), self._folder.naming_failures():
            self._remove_stale()
            entries = self._folder.entries()
            reserved = self._reserved(other_than=download)
            counted = [entry for entry in entries if entry.key not in reserved and entry.key != download.path.name]
            over = sum(entry.size_bytes for entry in counted) + sum(reserved.values()) + size_bytes - self._max_bytes
            coming = size_bytes + sum(reserved.values())
            present = sum(entry.size_bytes for entry in entries if entry.kind == "partial" and entry not in counted)
            lacking = coming - present - shutil.disk_usage(self._folder.root).free
            short = max(over, lacking)
            short -= self._evict(counted, short)
            if short <= 0:
                os.pwrite(download.file.fileno(), str(size_bytes).encode(), 0)
                return None
        if lacking >= over:
            return f"the disk of FLUX2_SOURCES_CACHE_DIR {self._folder.root} lacks {short} bytes; free space on it"
        return (
            "the other files in the cache are in use or on their way; raise FLUX2_SOURCES_CACHE_MAX_BYTES, which is "
            f"{self._max_bytes}, by {short} or more"
        )

    def clear(self, *, older_than_s: float = 0.0) -> Cleared:
        """Remove all files that were not used for some time, except those in use."""
        old = [entry for entry in self._folder.entries() if age_s(entry) >= older_than_s]
        removed = [entry for entry in old if self._remove(entry)]
        kept = [entry for entry in old if entry not in removed and entry.path.exists()]
        return Cleared(len(removed), _total(removed), len(kept), _total(kept))

    def _evict(self, entries: Iterable[CacheEntry], wanted_bytes: int) -> int:
        """Remove entries, in order, until their sizes reach a number; return the bytes that were removed."""
        unused = [entry for entry in entries if not is_locked(entry.path)] if wanted_bytes > 0 else []
        if _total(unused) < wanted_bytes:
            return 0  # it would not be enough
        freed = 0
        for entry in unused:
            if freed >= wanted_bytes:
                break
            if self._remove(entry):
                freed += entry.size_bytes
                logger.info("file evicted", extra={"file": entry.name, "size_bytes": entry.size_bytes})
        return freed

    def _remove_stale(self) -> None:
        for entry in self._folder.entries():
            if entry.kind == "partial" and age_s(entry) > _STALE_PARTIAL_S:
                self._remove(entry)
        for place in self._folder.locks.iterdir():
            # What a killed process left: a process that downloads holds the lock.
            if place.name != _LOCK:
                remove_unused(place)
        PinIndex(self._folder).remove_orphans()

    def _remove(self, entry: CacheEntry) -> bool:
        removed = remove_unused(entry.path)
        if removed and entry.kind == "file":
            (self._folder.uses / entry.name).unlink(missing_ok=True)
        return removed

    def _reserved(self, *, other_than: LockedFile) -> dict[str, int]:
        """Return the sizes of the files that others download now, by key."""
        places = [place for place in self._folder.locks.iterdir() if place.name not in (_LOCK, other_than.path.name)]
        return {place.name: _size_in(place) for place in places if is_locked(place)}

    def _lock(self) -> LockedFile:
        # Held for as long as a look at the folder takes.
        while (locked := try_lock(self._folder.locks / _LOCK, create=True)) is None:
            time.sleep(_POLL_S)
        return locked


def _size_in(lock: Path) -> int:
    # Empty until its process knows the size; gone once the download has ended.
    with suppress(FileNotFoundError, ValueError):
        return int(lock.read_bytes())
    return 0


def _total(entries: Iterable[CacheEntry]) -> int:
    return sum(entry.size_bytes for entry in entries)
