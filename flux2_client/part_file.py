"""The file that a download writes before it gets its name."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where two downloads of one file at the same time are not kept apart
    fcntl = None  # type: ignore[assignment]

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


@contextmanager
def open_part(path: Path) -> Iterator[BinaryIO]:
    """Open the `.part` file of `path`, and rename it to `path` at the end of the block.

    If the block raises, the file stays, and the next call gets it with what it holds. While another download has it
    open, in this process or another, this one gets a file with a name of its own: both end with the same bytes.

    Raises:
        OSError: the file cannot be made, written or renamed.
    """
    part = path.with_name(f"{path.name}.part")
    file = _open_locked(part)
    is_shared = file is not None
    if file is None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        file = _open(part)
    try:
        with file:
            yield file
            file.flush()
            if fcntl is not None:
                # Still locked: who waited for this name must not write into the finished file.
                part.replace(path)
        if fcntl is None:
            part.replace(path)
    except BaseException:
        if not is_shared:
            part.unlink(missing_ok=True)
        raise


def _open(part: Path) -> BinaryIO:
    return os.fdopen(os.open(part, _FLAGS, 0o666), "r+b")


def _open_locked(part: Path) -> BinaryIO | None:
    """Open and lock a file; return None if another download has it."""
    while True:
        file = _open(part)
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            # Some network file systems have no locks.
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        # The download that had the file renamed it after it was opened here.
        file.close()
