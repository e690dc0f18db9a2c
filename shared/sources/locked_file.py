"""Lock files between the processes and threads of one host by flock, which the kernel ends with the process.

A file can be removed or renamed between its opening and its lock. Each function therefore checks, once it has the
lock, that the path still names the file. With that check a locked file may be deleted without a race.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType

# A link at the path of a file of ours was planted by someone else.
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o600


@dataclass(frozen=True)
class LockedFile:
    """An open file and this process's lock on it; also a context manager that closes it."""

    path: Path
    file: FileIO

    def is_current(self) -> bool:
        """Return whether `path` still names this file."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Delete the file while it is locked, so that nobody can begin to use it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the lock."""
        self.file.close()

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_shared(path: Path) -> LockedFile | None:
    """Open a file for reading, so that nobody removes it; return None if it does not exist."""
    while True:
        try:
            locked = LockedFile(path, FileIO(path, "rb", opener=_open))
        except FileNotFoundError:
            return None
        # Exclusive locks on existing files are held for moments only.
        fcntl.flock(locked.file, fcntl.LOCK_SH)
        if locked.is_current():
            return locked
        locked.close()


def try_lock(path: Path, *, create: bool = False) -> LockedFile | None:
    """Open a file for reading and writing; return None if anybody has a lock on it, or if it does not exist.

    Args:
        create: whether to create a missing file.
    """
    while True:
        try:
            file = FileIO(path, "r+b", opener=partial(_open, extra=os.O_CREAT if create else 0))
        except FileNotFoundError:
            return None
        locked = LockedFile(path, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked.close()
            return None
        if locked.is_current():
            return locked
        locked.close()


def remove_unused(path: Path) -> bool:
    """Delete a file unless anybody has a lock on it; return whether this call deleted it."""
    locked = None
    # A planted link, or a file of another user: not ours to delete.
    with contextlib.suppress(OSError):
        locked = try_lock(path)
    if locked is None:
        return False
    with locked:
        locked.remove()
    return True


def is_locked(path: Path) -> bool:
    """Return whether anybody has a lock on a file."""
    locked = try_lock(path)
    if locked is None:
        return path.exists()
    locked.close()
    return False


def _open(path: str, flags: int, *, extra: int = 0) -> int:
    return os.open(path, flags | extra | _FLAGS, _MODE)
