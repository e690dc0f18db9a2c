"""What the cache of this host holds, for the person who looks after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.sources.cache_folder import CacheEntry, CacheFolder
from shared.sources.locked_file import is_locked
from shared.sources.pin_index import PinIndex
from shared.sources.room import Cleared, Room


@dataclass(frozen=True)
class CacheLine:
    """One file of the cache.

    Attributes:
        sha256: None if the file is not complete.
        sources: canonical texts of the sources that the file came from.
        used_at: RFC 3339.
    """

    sha256: str | None
    complete: bool
    size_bytes: int
    in_use: bool
    used_at: str
    sources: tuple[str, ...]


class CacheInventory:
    """The files of a cache folder, which need not exist."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = CacheFolder(folder)
        self._pins = PinIndex(self.folder)
        self._room = Room(self.folder, max_bytes=max_bytes)

    def lines(self) -> list[CacheLine]:
        """Return the files, the least recently used first.

        Raises:
            CacheUnavailable: the folder belongs to another user.
        """
        sources: dict[str, set[str]] = {}
        with self.folder.naming_failures():
            for record in self._pins.records():
                sources.setdefault(record.sha256, set()).add(record.source)
            return [_line(entry, sources) for entry in self.folder.entries()]

    def clear(self, *, older_than_s: float = 0.0) -> Cleared:
        """Remove the files that were not used for some time, except those in use.

        Raises:
            CacheUnavailable: the folder belongs to another user.
        """
        with self.folder.naming_failures():
            if not self.folder.exists():
                return Cleared(0, 0, 0, 0)
            self.folder.prepare()
            return self._room.clear(older_than_s=older_than_s)


def _line(entry: CacheEntry, sources: dict[str, set[str]]) -> CacheLine:
    is_complete = entry.kind == "file"
    return CacheLine(
        sha256=entry.name if is_complete else None,
        complete=is_complete,
        size_bytes=entry.size_bytes,
        in_use=is_locked(entry.path),
        used_at=datetime.fromtimestamp(entry.used_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        sources=tuple(sorted(sources.get(entry.name, ()))),
    )
