"""PUT and DELETE /v1/adapters/{name}: keep adapter files in the service's own object store."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from api.deps import FileDigestDep, FileSha256Dep, ServicesDep
from api.doors.roles import Submitter
from api.openapi import link, with_rules
from api.schemas.problems import Problem
from api.schemas.uploads import DeletedUploads, UploadedAdapter
from api.timestamps import format_time
from api.upload_deletion import delete_uploads
from api.upload_headers import DIGEST_RULES
from api.uploading import receive_upload
from shared.sources.source import UPLOAD_NAME

router = APIRouter(prefix="/v1", tags=["adapters"])

UploadName = Annotated[
    str,
    Path(
        description="Up to 128 letters, digits, `.`, `_` and `-`; the first is a letter or a digit.",
        json_schema_extra={"pattern": f"^{UPLOAD_NAME.pattern}$"},
    ),
]

_RULES = {
    "INVALID_LORA": "The body is a `.safetensors` file with an adapter.",
    "BODY_TOO_LARGE": "The body has at most `FLUX2_ADAPTERS_MAX_BYTES`.",
}

_LINKS: dict[str, dict[str, Any]] = {
    "describe": link("GET", "/v1/adapters", "Describe the file.", path="$response.body#/path"),
    "delete": link("DELETE", "/v1/adapters/{name}", "Delete the file.", name="$response.body#/name"),
}

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": UploadedAdapter,
        "description": "The same bytes were stored under this name before.",
        "links": _LINKS,
    },
    201: {"links": _LINKS},
    400: {"model": Problem, "description": "The name or a digest has no sound form."},
    408: {"model": Problem, "description": "The connection stalled before the whole file had arrived."},
    411: {"model": Problem, "description": "The upload has no `Content-Length`."},
    413: {"model": Problem, "description": "The file is larger than `FLUX2_ADAPTERS_MAX_BYTES`."},
    415: {"model": Problem, "description": "The body is not the file itself."},
    422: {"model": Problem, "description": "No job could use the file, or its bytes have another sha256 than stated."},
    503: {"model": Problem, "description": "The object store is away, or too many files are being uploaded."},
}


@router.put(
    "/adapters/{name}",
    status_code=HTTPStatus.CREATED,
    summary="Upload an adapter file",
    responses=_PROBLEMS,
    openapi_extra=_BODY | with_rules(_RULES, DIGEST_RULES),
)
async def put_adapter(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Submitter,
    name: UploadName,
    _sha256: FileSha256Dep = None,
    _digest: FileDigestDep = None,
) -> UploadedAdapter:
    """Store the body, a `.safetensors` file, and return the path under which jobs can name it.

    The file's header is checked as that of a submit, before the rest is stored. A file is stored completely or not
    at all. Repeating the call with the same bytes changes nothing and answers 200. Other bytes under the same name
    are another version: `upload:NAME` names the last one, `upload:NAME@SHA256` always the same.
    """
    stored = await receive_upload(request, name, services, tenant=caller.upload_tenant)
    if not stored.is_new:
        response.status_code = HTTPStatus.OK
    upload, layout = stored.upload, stored.checked.layout
    return UploadedAdapter(
        name=upload.name,
        path=upload.path,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        uploaded_at=format_time(datetime.fromtimestamp(upload.uploaded_s, UTC)),
        kind=layout.kind,
        ranks=list(layout.ranks),
        layers=len(layout.layers),
        must_ignore=list(stored.checked.must_ignore),
    )


@router.delete(
    "/adapters/{name}",
    summary="Delete an uploaded adapter file",
    responses={
        400: {"model": Problem, "description": "The name has no sound form."},
        404: {"model": Problem, "description": "No file was uploaded under this name."},
        409: {"model": Problem, "description": "Jobs that have not ended use the file."},
        422: {"model": Problem, "description": "A parameter is invalid."},
    },
)
async def delete_adapter(
    services: ServicesDep,
    caller: Submitter,
    name: UploadName,
    sha256: Annotated[
        str | None,
        Query(description="Delete only the version with this sha256. Default: all.", pattern="^[0-9a-f]{64}$"),
    ] = None,
) -> DeletedUploads:
    """Delete the versions of an upload, all of them or none; those that queued or running jobs use stay."""
    delete = partial(delete_uploads, services, name, sha256=sha256, tenant=caller.upload_tenant)
    uploads = await to_thread.run_sync(delete, limiter=services.deletion_limiter)
    return DeletedUploads(deleted=[upload.path for upload in uploads])
