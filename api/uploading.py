"""Receive an adapter file, check its header, and store it piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio
from anyio import to_thread
from starlette.requests import Request

from api.deps import Services
from api.upload_body import FileHead, open_body
from api.upload_headers import FileRules, check_upload_name, read_upload_headers
from shared.adapters.foreign import is_text_encoder
from shared.adapters.header import read_open_header
from shared.adapters.layout import AdapterLayout, parse_layout
from shared.errors import AdapterRefused
from shared.job import ADAPTER_PARTS, AdapterPart
from shared.sources.uploads import Upload

T = TypeVar("T")

_TYPE = "application/octet-stream"
# curl -T states no type. No web page can send a PUT to an API on loopback unasked, whatever its type.
_TYPES = re.compile(f"(?:{_TYPE})?")


@dataclass(frozen=True)
class CheckedLayout:
    """What the header of an uploaded file says.

    Attributes:
        must_ignore: parts that a job must ignore to use the file.
    """

    layout: AdapterLayout
    must_ignore: tuple[AdapterPart, ...]


@dataclass(frozen=True)
class StoredUpload:
    """A file that was stored; `is_new` is False if the same bytes were there under the same name."""

    upload: Upload
    checked: CheckedLayout
    is_new: bool


async def receive_upload(request: Request, name: str, services: Services, *, tenant: str | None) -> StoredUpload:
    """Store the body of a request as an upload of a tenant; nothing stays if this fails.

    Raises:
        RequestError: the request, or the file, is not sound.
        UploadsBusy, AdapterCheckBusy, StorageUnavailable: a later try may succeed.
    """
    if services.settings.sources.local_only:
        raise AdapterRefused(
            "FLUX2_SOURCES_LOCAL_ONLY allows no uploads, because no job could name them; put the file into the "
            "adapter root"
        )
    check_upload_name(name)
    max_bytes = services.settings.adapters.max_bytes
    stated = read_upload_headers(request.headers, _rules(max_bytes))
    with services.upload_slots.take():
        body = open_body(request, size_bytes=stated.size_bytes)
        run = partial(_run, services)
        head = await body.read_head(name)
        checked = await run(partial(check_head, head, max_bytes=max_bytes))
        begin = partial(
            services.uploads.begin, name, expected_bytes=stated.size_bytes, sha256=stated.sha256, tenant=tenant
        )
        writer = await run(begin)
        try:
            while piece := await body.take(writer.piece_bytes):
                await run(partial(writer.write, piece))
            stated.check_digest(writer.sha256)
            upload, is_new = await run(writer.finish)
        finally:
            # Also when the server stops and cancels this request.
            with anyio.CancelScope(shield=True):
                await run(writer.abort)
    return StoredUpload(upload, checked, is_new)


def _rules(max_bytes: int) -> FileRules:
    how = f"with content-type: {_TYPE} and no content-encoding (with curl: -T FILE)"
    return FileRules(_TYPES, how, max_bytes, "FLUX2_ADAPTERS_MAX_BYTES")


async def _run(services: Services, call: Callable[[], T]) -> T:
    return await to_thread.run_sync(call, limiter=services.upload_slots.limiter)


def check_head(head: FileHead, *, max_bytes: int) -> CheckedLayout:
    """Check a header as a submit does, without comparing it with a base model.

    Raises:
        AdapterRefused: no job could use the file; the message says why.
        AdapterCheckBusy: other large headers were parsed for the last 5 s.
    """
    header = read_open_header(head.as_binary(), max_bytes=max_bytes)
    try:
        return CheckedLayout(parse_layout(header), ())
    except AdapterRefused:
        if not any(map(is_text_encoder, header.tensors)):
            raise
        # A job may leave these layers out; if that does not help, the first refusal is the one to show.
        return CheckedLayout(parse_layout(header, ignore=ADAPTER_PARTS), ADAPTER_PARTS)
