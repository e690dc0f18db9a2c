"""The form of an edit in OpenAI's interface: images and the fields of a generation, as `multipart/form-data`."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.deps import Services
from api.image_uploading import store_image
from api.openai.generation import GenerationRequest
from api.upload_body import UploadBody, open_body
from api.upload_headers import FileRules, StatedFile, read_upload_headers
from shared.errors import ContentTypeRefused, InvalidRequest, ReferenceRefused
from shared.reference_source import check_size
from shared.reference_store import ReferenceStore

#: Reference images of one edit.
MAX_REFERENCES: Final = 3
_IMAGES: Final = ("image", "image[]")
# What the official client may send for the parameter that masks a part of the image.
_MASK: Final = "mask"
_MAX_FIELDS: Final = 40
_FIELDS_BYTES: Final = 1024**2
_PIECE_BYTES: Final = 64 * 1024
_TYPE: Final = "multipart/form-data"
#: Fields that hold a list, as JSON.
LISTS: Final = ("loras", "sigmas")


@dataclass(frozen=True)
class Edit:
    """A request for images, and the addresses of its reference images."""

    request: GenerationRequest
    references: Sequence[str]


async def receive_edit(request: Request, services: Services, *, tenant: str | None) -> Edit:
    """Read the form of a request, and store its images as uploads of a tenant.

    Raises:
        ContentTypeRefused, LengthRequired, UploadTooLarge: the body is no form, or larger than its images may be.
        UploadIncomplete: the body ended early, or comes too slowly.
        InvalidRequest: the form has no image, too many, or a mask.
        ReferenceRefused: an image cannot be used; `field` names it.
        RequestValidationError: another field is invalid.
        UploadsBusy, StorageUnavailable: a later try may succeed.
    """
    stated = _check_headers(request, max_bytes=services.settings.references.max_bytes)
    # Files beyond a megabyte wait on the disk, which has no more room than the memory.
    with services.image_slots.take(stated.size_bytes):
        async with _open_form(request, size_bytes=stated.size_bytes) as form:
            files = _files(form)
            generation = _generation(form)
            references = services.references.of(tenant)
            addresses = [await _store(services, references, number, file) for number, file in enumerate(files)]
    return Edit(generation, addresses)


def _check_headers(request: Request, *, max_bytes: int) -> StatedFile:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != _TYPE:
        raise ContentTypeRefused(f"send a form with the fields image and prompt, with content-type: {_TYPE}")
    most = MAX_REFERENCES * max_bytes + _FIELDS_BYTES
    rules = FileRules(re.compile(_TYPE), "as a form", most, "FLUX2_REFERENCES_MAX_BYTES")
    return read_upload_headers(request.headers, rules)


@asynccontextmanager
async def _open_form(request: Request, *, size_bytes: int) -> AsyncIterator[FormData]:
    """Receive a form at the pace of an upload, and close its files at the end."""
    pieces = _read_pieces(open_body(request, size_bytes=size_bytes))
    parser = MultiPartParser(request.headers, pieces, max_files=MAX_REFERENCES + 1, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from error
    try:
        yield form
    finally:
        await form.close()


async def _read_pieces(body: UploadBody) -> AsyncGenerator[bytes, None]:
    while piece := await body.take(_PIECE_BYTES):
        yield piece


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
    for name in LISTS:
        if name in fields:
            fields[name] = _read_list(name, fields[name])
    try:
        return GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


def _read_list(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{name} is no JSON: {error}", field=name) from error


async def _store(services: Services, references: ReferenceStore, number: int, file: UploadFile) -> str:
    """Check and store an image; return the address with which a prompt names it."""
    try:
        check_size(file.size or 0, max_bytes=services.settings.references.max_bytes)
        store = partial(store_image, references, await file.read())
        stored = await to_thread.run_sync(store, limiter=services.image_slots.limiter)
        return f"upload:{stored.image.sha256}"
    except ReferenceRefused as error:
        raise ReferenceRefused(str(error), field=f"image[{number}]") from error
