"""Write a job's images as a ZIP file, piece by piece: neither a large job nor a slow reader needs memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from api.piece_stream import read_pieces
from api.schemas.job_result import Image, Result
from shared.ledger import JobView
from shared.storage import FileStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Most images are smaller; one that is not takes several requests of the store.
_PIECE_BYTES: Final = 4 * 1024**2
_ADAPTER_CHARS: Final = 60
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._+-]+")
# They stop working before most people open the file.
_URLS: Final[dict[str, Any]] = {
    "url": True,
    "url_expires_at": True,
    "thumbnail_url": True,
    "references": {"__all__": {"url"}},
}


class _Pieces(io.RawIOBase):
    """Collects what a `ZipFile` writes; it cannot seek, so the size of each image follows its bytes."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._written.append(bytes(data))
        return len(self._written[-1])

    def take(self) -> bytes:
        taken = b"".join(self._written)
        self._written.clear()
        return taken


def archive_pieces(job: JobView, result: Result, store: FileStore) -> Iterator[bytes]:
    """Yield the ZIP file of the images that are finished, and `parameters.json` with what made each of them.

    Images are stored as they are, because their formats are compressed already.

    Raises:
        StorageUnavailable: an image cannot be read; without its end, what came before is no valid ZIP file.
    """
    images = result.outputs.images if result.outputs else []
    names = {image.index: _file_name(image) for image in images}
    results = {item.index: item.result for item in job.items}
    finished = datetime.fromtimestamp((job.finished_ms or job.accepted_ms) / 1000, UTC).timetuple()[:6]
    pieces = _Pieces()
    with ZipFile(pieces, "w", ZIP_STORED) as archive:
        for image in images:
            found = results[image.index]
            assert found is not None
            with archive.open(ZipInfo(names[image.index], finished), "w") as file:
                for data in read_pieces(store, found.key, size_bytes=found.size_bytes, piece_bytes=_PIECE_BYTES):
                    file.write(data)
                    yield pieces.take()
        archive.writestr(ZipInfo("parameters.json", finished), _parameters(result, names))
    yield pieces.take()


def archive_name(job: JobView) -> str:
    """Return the name under which browsers save the archive of a job."""
    return f"flux2-{_UNSAFE.sub('', job.job_id)[:8]}.zip"


def _file_name(image: Image) -> str:
    """Return a name such as `0003-seed-42-ink.png`; no other image of the job has its number."""
    stems = "+".join(PurePosixPath(adapter.path.partition("?")[0]).stem for adapter in image.adapters)
    adapters = _UNSAFE.sub("_", stems)[:_ADAPTER_CHARS] or "base"
    seed = "" if image.seed is None else f"-seed-{image.seed}"
    return f"{image.index:04d}{seed}-{adapters}.{image.format}"


def _parameters(result: Result, names: dict[int, str]) -> str:
    images = result.outputs.images if result.outputs else []
    described: list[dict[str, Any]] = [
        {"file": names[image.index], **image.model_dump(mode="json", exclude=_URLS)} for image in images
    ]
    whole = {**result.model_dump(mode="json", exclude={"outputs"}), "images": described}
    return json.dumps(whole, ensure_ascii=False, indent=2)
