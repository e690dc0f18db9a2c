"""Receive the body of an upload at the pace of its sender, in pieces or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import anyio
from starlette.requests import ClientDisconnect, Request

from shared.adapters.header import MAX_HEADER_BYTES
from shared.errors import UploadIncomplete
from shared.safetensors_header import LENGTH_BYTES
from shared.seekable_file import SeekableFile

# Enough to recognise what a file without a header is.
_START_BYTES = 512
# How far a caller may fall behind the slowest pace, in seconds: one that has gone holds one of few places.
_PATIENCE_S = 60.0
# The slowest pace, half a megabit per second: a file of 1.3 GB takes 6 hours.
_SLOWEST_BYTES_S = 64 * 1024


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
        self._patience_s = _PATIENCE_S

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
            UploadIncomplete: the body ended early, or comes too slowly.
        """
        count = min(count, self.size_bytes - self._received + len(self._waiting))
        await self._receive(count)
        with memoryview(self._waiting) as view:
            piece = bytes(view[:count])
        del self._waiting[:count]
        return piece

    async def _receive(self, count: int) -> None:
        while len(self._waiting) < count:
            chunk = await self._next_chunk()
            if chunk is None:
                raise UploadIncomplete(f"{self._received} of {self.size_bytes} bytes arrived; send the file again")
            self._received += len(chunk)
            self._waiting += chunk

    async def _next_chunk(self) -> bytes | None:
        began_s = time.monotonic()
        try:
            with anyio.fail_after(self._patience_s):
                chunk = await anext(self._chunks, None)
        except TimeoutError as error:
            raise UploadIncomplete(
                f"{self._received} of {self.size_bytes} bytes arrived, {_PATIENCE_S:.0f} s behind a pace of "
                f"{_SLOWEST_BYTES_S // 1024} KiB/s; send the file again over a faster connection"
            ) from error
        # Only the time of waiting for the caller counts, not that of the store.
        earned_s = len(chunk or b"") / _SLOWEST_BYTES_S
        self._patience_s = min(_PATIENCE_S, self._patience_s - (time.monotonic() - began_s) + earned_s)
        return chunk


def open_body(request: Request, *, size_bytes: int) -> UploadBody:
    """Return the body of a request, which states that it has `size_bytes`."""
    return UploadBody(_chunks(request), size_bytes=size_bytes)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise UploadIncomplete("the connection ended before the whole file had arrived; send it again") from error


class FileHead(SeekableFile):
    """The beginning of a file that is still arriving, as an open file.

    Args:
        start: the bytes that arrived; they are not copied.
        file_bytes: size of the whole file.
    """

    def __init__(self, name: str, start: bytearray, *, file_bytes: int) -> None:
        super().__init__(name, file_bytes=file_bytes)
        self._start = start

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        # Behind the beginning there is nothing yet: whoever reads there gets the end of the file.
        with memoryview(self._start) as view:
            found = view[self._position : self._position + len(buffer)]
            buffer[: len(found)] = found
            count = len(found)
            found.release()
        self._position += count
        return count
