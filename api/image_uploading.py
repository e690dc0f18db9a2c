"""Receive the file of a reference image whole, check it, and store it by its content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from anyio import to_thread
from starlette.requests import Request

from api.deps import Services
from api.upload_body import open_body
from api.upload_headers import FileRules, StatedFile, read_upload_headers
from shared.errors import ObjectMissing, ReferenceRefused, UploadNotFound
from shared.reference_image import CheckedImage, check_image
from shared.reference_store import ReferenceStore

#: Number of images of the largest size that one process receives at the same time; of smaller ones it receives more.
PARALLEL_IMAGES = 4

# Not none: a web page could send a body without a type to an API on loopback, without asking it first. What the file
# is, its bytes decide.
_TYPES = re.compile(r"image/[a-z0-9.+-]+|application/octet-stream")
_HOW = (
    "with content-type: image/png or another image type, and no content-encoding (with curl: --data-binary @FILE -H "
    "'content-type: image/png')"
)


@dataclass(frozen=True)
class StoredImage:
    """An image that was stored; `is_new` is False if the same bytes were there."""

    image: CheckedImage
    is_new: bool


async def receive_image(request: Request, services: Services, *, tenant: str | None) -> StoredImage:
    """Store the body of a request as a reference image of a tenant; nothing stays if this fails.

    Raises:
        RequestError: the request, or the image, is not sound.
        UploadsBusy, StorageUnavailable: a later try may succeed.
    """
    max_bytes = services.settings.references.max_bytes
    stated = read_upload_headers(request.headers, FileRules(_TYPES, _HOW, max_bytes, "FLUX2_REFERENCES_MAX_BYTES"))
    with services.image_slots.take(stated.size_bytes):
        data = await open_body(request, size_bytes=stated.size_bytes).take(stated.size_bytes)
        store = partial(_check_and_store, services.references.of(tenant), data, stated)
        return await to_thread.run_sync(store, limiter=services.image_slots.limiter)


async def describe_image(sha256: str, services: Services, *, tenant: str | None) -> CheckedImage:
    """Describe a stored image of a tenant, which becomes young again.

    Raises:
        UploadNotFound: no such image is stored, or its bytes are not those that were uploaded.
        UploadsBusy, StorageUnavailable: a later try may succeed.
    """
    run = partial(to_thread.run_sync, limiter=services.image_slots.limiter)
    references = services.references.of(tenant)
    size_bytes = await run(partial(references.size_bytes, sha256))
    if size_bytes is None:
        raise _not_found(sha256)
    with services.image_slots.take(min(size_bytes, services.settings.references.max_bytes)):
        return await run(partial(_read_and_check, references, sha256))


def _read_and_check(references: ReferenceStore, digest: str) -> CheckedImage:
    try:
        references.renew(digest)
        image = check_image(references.get(digest))
    except (ObjectMissing, ReferenceRefused) as error:
        raise _not_found(digest) from error
    if image.sha256 != digest:
        raise _not_found(digest)
    return image


def _not_found(sha256: str) -> UploadNotFound:
    return UploadNotFound(
        f"no image was uploaded as upload:{sha256}, or it was deleted; upload it with POST /v1/uploads"
    )


def _check_and_store(references: ReferenceStore, data: bytes, stated: StatedFile) -> StoredImage:
    # First: what was damaged on its way should be sent again, not be replaced by another image.
    if stated.sha256 is not None:
        stated.check_digest(sha256(data).hexdigest())
    return store_image(references, data)


def store_image(references: ReferenceStore, data: bytes) -> StoredImage:
    """Check the bytes of an image and store them.

    Raises:
        ReferenceRefused: no job could use the image.
        StorageUnavailable: the store does not answer.
    """
    image = check_image(data)
    return StoredImage(image, references.put(image, data))
