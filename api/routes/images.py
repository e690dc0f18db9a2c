"""POST and GET /v1/uploads: keep the reference images of jobs in the service's own object store."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from api.deps import FileDigestDep, FileSha256Dep, ServicesDep
from api.doors.roles import Reader, Submitter
from api.image_uploading import describe_image, receive_image
from api.openapi import link, with_rules
from api.schemas.problems import Problem
from api.schemas.uploads import UploadedImage
from api.upload_headers import DIGEST_RULES
from shared.reference_image import CheckedImage

router = APIRouter(prefix="/v1", tags=["references"])

_RULES = {
    "invalid_reference": "The body is an image whose size and shape prompts can use.",
    "BODY_TOO_LARGE": "The body has at most `limits.max_reference_bytes` of `GET /v1/models`.",
}

_LINKS: dict[str, Any] = {
    "describe": link("GET", "/v1/uploads/{sha256}", "Describe the image again.", sha256="$response.body#/sha256")
}

_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "application/octet-stream")
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": dict.fromkeys(_TYPES, _FILE)}}

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    200: {"model": UploadedImage, "description": "The same image was stored before.", "links": _LINKS},
    201: {"links": _LINKS},
    400: {"model": Problem, "description": "A digest has no sound form."},
    408: {"model": Problem, "description": "The connection stalled before the whole file had arrived."},
    411: {"model": Problem, "description": "The upload has no `Content-Length`."},
    413: {"model": Problem, "description": "The file is larger than `FLUX2_REFERENCES_MAX_BYTES`."},
    415: {"model": Problem, "description": "The body is not declared as an image."},
    422: {"model": Problem, "description": "No job could use the image, or its bytes have another sha256 than stated."},
    503: {"model": Problem, "description": "The object store is away, or too many images are being uploaded."},
}


@router.post(
    "/uploads",
    status_code=HTTPStatus.CREATED,
    summary="Upload a reference image",
    responses=_PROBLEMS,
    openapi_extra=_BODY | with_rules(_RULES, DIGEST_RULES),
)
async def post_upload(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Submitter,
    _sha256: FileSha256Dep = None,
    _digest: FileDigestDep = None,
) -> UploadedImage:
    """Store the body, a PNG, JPEG, WebP or BMP file, and return the text with which prompts name it.

    The image is checked as that of a submit. Nothing is stored of an image that no job could use. An image is known by
    its bytes alone, so a repeat answers 200 and the same text.
    """
    stored = await receive_image(request, services, tenant=caller.upload_tenant)
    if not stored.is_new:
        response.status_code = HTTPStatus.OK
    return _describe(stored.image)


@router.get(
    "/uploads/{sha256}",
    summary="Describe an uploaded image",
    responses={
        404: {"model": Problem, "description": "No such image is stored."},
        422: {"model": Problem, "description": "The sha256 has no sound form."},
        503: {"model": Problem, "description": "The object store is away, or too many images are being read."},
    },
)
async def get_upload(
    services: ServicesDep,
    caller: Reader,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image's file.")],
) -> UploadedImage:
    """Say what `POST /v1/uploads` said about an image, so that a large one need not be sent again.

    The image counts as stored now for rules that delete old ones.
    """
    return _describe(await describe_image(sha256, services, tenant=caller.upload_tenant))


def _describe(image: CheckedImage) -> UploadedImage:
    return UploadedImage(
        path=f"upload:{image.sha256}",
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        width=image.width,
        height=image.height,
        effective_width=image.prepared.width,
        effective_height=image.prepared.height,
        warnings=[f"the image {note}" for note in image.notes],
    )
