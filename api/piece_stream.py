"""Answer with stored files, piece by piece: neither a large file nor a slow reader needs memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping

from anyio import CapacityLimiter, to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Send

from shared.errors import ObjectMissing, StorageUnavailable
from shared.storage import FileStore

logger = logging.getLogger("flux2.api")


class _PieceResponse(StreamingResponse):
    """An answer that ends without its last message if a file cannot be read; the server then ends the connection."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except StorageUnavailable as error:
            logger.warning("answer ended early", extra={"media_type": self.media_type, "error": str(error)})


async def stream_pieces(
    pieces: Iterator[bytes], *, limiter: CapacityLimiter, media_type: str, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Return an answer that sends pieces as it gets them.

    Args:
        pieces: at least one; each is read in a thread.
        limiter: of these threads. A reader that is slow takes none of them.

    Raises:
        StorageUnavailable: the first piece cannot be read.
    """
    # Before the answer begins: a store that is away is still answered by its problem.
    ready = [await to_thread.run_sync(next, pieces, limiter=limiter)]

    async def body() -> AsyncIterator[bytes]:
        while ready:
            yield ready.pop()
            if (piece := await to_thread.run_sync(next, pieces, None, limiter=limiter)) is not None:
                ready.append(piece)

    return _PieceResponse(body(), media_type=media_type, headers=headers)


def read_pieces(store: FileStore, key: str, *, size_bytes: int, piece_bytes: int) -> Iterator[bytes]:
    """Yield a stored file; raises `StorageUnavailable`, also for one that is shorter."""
    for start in range(0, size_bytes, piece_bytes):
        end = min(start + piece_bytes, size_bytes)
        data = store.read(key, start, end)
        if len(data) != end - start:
            raise ObjectMissing(f"GET {key}: it is shorter than the image that was stored")
        yield data
