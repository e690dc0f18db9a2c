"""The form of an edit in OpenAI's interface: images and the fields of a generation, as `multipart/form-data`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api.deps import Services
from api.openai.generation import GenerationRequest
from api.upload_headers import FileRules, read_upload_headers
from shared.errors import ContentTypeRefused, InvalidRequest, ReferenceRefused
from shared.reference_image import check_image
from shared.reference_source import check_size
from shared.reference_store import ReferenceStore

#: Reference images of one edit.
MAX_REFERENCES: Final = 3
_IMAGES: Final = ("image", "image[]")
# What the official client may send for the parameter that masks a part of the image.
_MASK: Final = "mask"
_MAX_FIELDS: Final = 40
_FIELDS_BYTES: Final = 1024**2
_TYPE: Final = "multipart/form-data"
# A list of adapters, as JSON.
_LORAS: Final = "loras"


@dataclass(frozen=True)
class Edit:
    """A request for images, and the addresses of its reference images."""

    request: GenerationRequest
    references: Sequence[str]


async def receive_edit(request: Request, services: Services, *, tenant: str | None) -> Edit:
    """Read the form of a request, and store its images as uploads of a tenant.

    Raises:
        ContentTypeRefused, LengthRequired, UploadTooLarge: the body is no form, or larger than its images may be.
        InvalidRequest: the form has no image, too many, or a mask.
        ReferenceRefused: an image cannot be used; `field` names it.
        RequestValidationError: another field is invalid.
        UploadsBusy, StorageUnavailable: a later try may succeed.
    """
    _check_headers(request, max_bytes=services.settings.references.max_bytes)
    # Files beyond a megabyte wait on the disk; of an image, one place for each byte is taken while it is in memory.
    async with request.form(max_files=MAX_REFERENCES + 1, max_fields=_MAX_FIELDS) as form:
        files = _files(form)
        generation = _generation(form)
        references = services.references.of(tenant)
        addresses = [await _store(services, references, number, file) for number, file in enumerate(files)]
    return Edit(generation, addresses)


def _check_headers(request: Request, *, max_bytes: int) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != _TYPE:
        raise ContentTypeRefused(f"send a form with the fields image and prompt, with content-type: {_TYPE}")
    most = MAX_REFERENCES * max_bytes + _FIELDS_BYTES
    read_upload_headers(request.headers, FileRules(re.compile(_TYPE), "as a form", most, "FLUX2_REFERENCES_MAX_BYTES"))


def _files(form: FormData) -> list[UploadFile]:
    if form.get(_MASK):
        raise InvalidRequest(
            "masks are not supported: the model edits the whole image by its prompt; leave the mask out", field=_MASK
        )
    files = [file for name in _IMAGES for file in form.getlist(name) if isinstance(file, UploadFile)]
    if not 1 <= len(files) <= MAX_REFERENCES:
        raise InvalidRequest(
            f"the form has {len(files)} files in the field image; send 1 to {MAX_REFERENCES}", field="image"
        )
    return files


def _generation(form: FormData) -> GenerationRequest:
    fields: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
    if _LORAS in fields:
        try:
            fields[_LORAS] = json.loads(fields[_LORAS])
        except ValueError as error:
            raise InvalidRequest(f"loras is no JSON: {error}", field=_LORAS) from error
    try:
        return GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


async def _store(services: Services, references: ReferenceStore, number: int, file: UploadFile) -> str:
    """Check and store an image; return the address with which a prompt names it."""
    size_bytes = file.size or 0
    try:
        check_size(size_bytes, max_bytes=services.settings.references.max_bytes)
        with services.image_slots.take(size_bytes):
            store = partial(_check_and_store, references, await file.read())
            return await to_thread.run_sync(store, limiter=services.image_slots.limiter)
    except ReferenceRefused as error:
        raise ReferenceRefused(str(error), field=f"image[{number}]") from error


def _check_and_store(references: ReferenceStore, data: bytes) -> str:
    image = check_image(data)
    references.put(image, data)
    return f"upload:{image.sha256}"
