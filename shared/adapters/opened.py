"""Open an adapter file once, and turn each failure of its file system into an error for the caller of the API.

All that is learned about an adapter comes from one open file: its header, size and sha256 are those of the same bytes,
even if the path is deleted or gets another file in the meantime.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from shared.errors import AdapterNotFound, AdapterRefused


class Stamp(NamedTuple):
    """The facts by which an unchanged file is recognised; a write changes at least the ctime, once its clock ticks."""

    path: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  # changes alone if a file is rewritten with its old size and mtime


@contextmanager
def open_adapter(path: Path) -> Iterator[FileIO]:
    """Open the file at `path` for the block.

    Raises:
        AdapterNotFound: no such file, or it was deleted during the block.
        AdapterRefused: the file cannot be read, is not a regular file, or changed during the block.
    """
    try:
        # Unbuffered: a buffer would read tensors behind the header.
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            before = stamp_of(file)
            yield file
            if stamp_of(file) != before:
                raise_changed(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except OSError as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error.strerror or error}") from error


def stamp_of(file: FileIO) -> Stamp:
    """Return the present stamp of an open file."""
    # Of the open file: a network file system may answer a stat of the path from its cache, but not after an open.
    info = os.fstat(file.fileno())
    return Stamp(str(file.name), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def raise_changed(file: FileIO) -> None:
    """Raise the error of a file that changed while it was open: `AdapterRefused`, or `FileNotFoundError` if deleted."""
    path = Path(file.name)
    path.stat()
    raise AdapterRefused(f"{path.name}: the file changed while it was read; submit again when it is complete")


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would otherwise wait for a writer.
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:
        # A file server of this host leased the file to a client. Only regular files have leases, and the kernel ends
        # them within 45 s.
        descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor
