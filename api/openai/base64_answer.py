"""Write images in base64 into an answer piece by piece: ten large ones would need more memory than an API has."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Final
from uuid import uuid4

from api.piece_stream import read_pieces
from api.schemas.openai_images import OpenAIImages
from shared.job import ItemResult
from shared.storage import FileStore

# As text a mebibyte, of which each of hundreds of slow callers holds one. Three bytes become four characters, so that
# the texts of pieces can be joined.
_PIECE_BYTES: Final = 3 * 256 * 1024


def answer_pieces(answer: OpenAIImages, results: Sequence[ItemResult], store: FileStore) -> Iterator[bytes]:
    """Yield the JSON of an answer with the file of each of its images.

    Args:
        results: where the images are stored, in their order.

    Raises:
        StorageUnavailable: an image cannot be read; without its end, what came before is no valid JSON.
    """
    # No prompt can have it.
    mark = uuid4().hex
    marked = [image.model_copy(update={"url": None, "b64_json": mark}) for image in answer.data]
    texts = iter(answer.model_copy(update={"data": marked}).model_dump_json().split(mark))
    # The text behind the last image stays.
    for result, text in zip(results, texts, strict=False):
        waiting = text.encode()
        for data in read_pieces(store, result.key, size_bytes=result.size_bytes, piece_bytes=_PIECE_BYTES):
            yield waiting + base64.b64encode(data)
            waiting = b""
    yield next(texts).encode()
