"""The history of a run: JSON lines, which all its processes write into one file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class History:
    """Appends events to a file; each process has one such object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, kind: str, **fields: Any) -> None:
        """Record that something happened now."""
        # Linux' monotonic clock: all processes of a host share it.
        event = {"t": round(time.monotonic(), 4), "kind": kind, "pid": os.getpid(), **fields}
        # One write of one line with O_APPEND is atomic on a local file, so no lock is needed.
        os.write(self._file, f"{json.dumps(event)}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Event]:
    """Read all events, in the order of their times."""
    return sorted(_lines(path), key=lambda event: float(event["t"]))


def _lines(path: Path) -> Iterator[Event]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
