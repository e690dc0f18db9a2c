"""Receive the body of an upload in pieces, and check the header of its adapter file before the rest arrives."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator

import anyio

from shared.adapters.header import MAX_HEADER_BYTES
from shared.errors import UploadIncomplete
from shared.safetensors_header import LENGTH_BYTES

# Enough to recognise what a file without a header is.
_START_BYTES = 512
# A caller that sends nothing for so long has gone, and holds one of few places.
_SILENT_S = 60.0


class UploadBody:
    """The body of one request; it keeps in memory what was received and not yet taken.

    Args:
        chunks: the body as it arrives.
        size_bytes: its size, as the caller states it.
    """

    def __init__(self, chunks: AsyncIterator[bytes], *, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._chunks = chunks
        self._waiting = bytearray()
        self._received = 0

    async def read_head(self, name: str) -> FileHead:
        """Receive the header of the file, or the start of a file that has none.

        The result is valid until the next call. Raises `UploadIncomplete` as `take` does.
        """
        await self._receive(min(_START_BYTES, self.size_bytes))
        head_bytes = LENGTH_BYTES + int.from_bytes(self._waiting[:LENGTH_BYTES], "little")
        if head_bytes <= min(self.size_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
            await self._receive(head_bytes)
        return FileHead(name, self._waiting, file_bytes=self.size_bytes)

    async def take(self, count: int) -> bytes:
        """Receive and return the next `count` bytes, fewer at the end; nothing after it.

        Raises:
            UploadIncomplete: the body ended early, or nothing came for a minute.
        """
        count = min(count, self.size_bytes - self._received + len(self._waiting))
        await self._receive(count)
        with memoryview(self._waiting) as view:
            piece = bytes(view[:count])
        del self._waiting[:count]
        return piece

    async def _receive(self, count: int) -> None:
        while len(self._waiting) < count:
            try:
                with anyio.fail_after(_SILENT_S):
                    chunk = await anext(self._chunks, None)
            except TimeoutError as error:
                raise UploadIncomplete(
                    f"{self._received} of {self.size_bytes} bytes arrived, and none for {_SILENT_S:.0f} s; send the "
                    "file again"
                ) from error
            if chunk is None:
                raise UploadIncomplete(f"{self._received} of {self.size_bytes} bytes arrived; send the file again")
            self._received += len(chunk)
            self._waiting += chunk


class FileHead(io.RawIOBase):
    """The beginning of a file that is still arriving, as a readable, seekable file.

    Args:
        start: the bytes that arrived; they are not copied.
        file_bytes: size of the whole file.
    """

    def __init__(self, name: str, start: bytearray, *, file_bytes: int) -> None:
        super().__init__()
        self.name = name
        self._start = start
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

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        # Behind the beginning there is nothing yet: whoever reads there gets the end of the file.
        with memoryview(self._start) as view:
            found = view[self._position : self._position + len(buffer)]
            buffer[: len(found)] = found
            count = len(found)
            found.release()
        self._position += count
        return count
