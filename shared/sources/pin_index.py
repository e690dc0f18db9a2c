"""Remember which digest a source had under a pin, because not every source states one."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from shared.sources.cache_folder import CacheFolder

# Keeps the digest of an evicted file, which is then verified when it is downloaded again.
_KEPT_S = 30 * 86_400.0
_NEW = ".new"


@dataclass(frozen=True)
class PinRecord:
    """The digest and the size of a source under a pin."""

    source: str
    pin: str
    sha256: str
    size_bytes: int


class PinIndex:
    """The records of a cache folder, one small file for each source and pin."""

    def __init__(self, folder: CacheFolder) -> None:
        self._folder = folder

    def find(self, source: str, pin: str) -> PinRecord | None:
        """Return the record of a source under a pin, or None."""
        record = _read(self._place(source, pin))
        return record if record is not None and (record.source, record.pin) == (source, pin) else None

    def add(self, record: PinRecord) -> None:
        """Store a record, on the disk before the name of its file is."""
        with self._folder.naming_failures():
            descriptor, name = tempfile.mkstemp(dir=self._folder.pins, suffix=_NEW)
            with open(descriptor, "w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._place(record.source, record.pin))

    def records(self) -> list[PinRecord]:
        """Return all records."""
        places = self._folder.pins.iterdir() if self._folder.pins.is_dir() else ()
        return [record for place in places if place.suffix != _NEW and (record := _read(place)) is not None]

    def remove_orphans(self) -> None:
        """Delete the old records of files that are no longer in the cache."""
        for place in self._folder.pins.iterdir():
            record = _read(place)
            is_needed = record is not None and (self._folder.blobs / record.sha256).exists()
            # Another process may do the same at this moment.
            with suppress(FileNotFoundError):
                if time.time() - place.lstat().st_mtime >= _KEPT_S and not is_needed:
                    place.unlink()

    def _place(self, source: str, pin: str) -> Path:
        return self._folder.pins / source_key(source, pin)


def source_key(source: str, pin: str) -> str:
    """Return a file name for a source under a pin."""
    return sha256(f"{source}\0{pin}".encode()).hexdigest()


def _read(place: Path) -> PinRecord | None:
    # A record that a crash or an older version left unreadable costs one download.
    try:
        return PinRecord(**json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        return None
