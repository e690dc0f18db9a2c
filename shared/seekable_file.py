"""A base for files that are read where they are kept, without a copy on this host."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast


class SeekableFile(io.RawIOBase):
    """A readable, seekable binary file of a known size; a subclass has `readinto`. One thread may use it.

    Args:
        name: the file in messages.
    """

    def __init__(self, name: str, *, file_bytes: int) -> None:
        super().__init__()
        self.name = name
        self._file_bytes = file_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def as_binary(self) -> BinaryIO:
        """Return this file under the type of an open one."""
        # `io.RawIOBase` has all that `BinaryIO` asks of a file that is only read, but is no subclass of it.
        return cast(BinaryIO, self)
