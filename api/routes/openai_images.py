"""OpenAI's interface for images: its official client works against these endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response

from api.deps import JSON_BODY, BaseUrlDep, IdempotencyKeyDep, ServicesDep, TenantDep
from api.doors.roles import Submitter, require_role
from api.openai.edit_form import LISTS, MAX_REFERENCES, receive_edit
from api.openai.generation import GenerationRequest
from api.openai.images import ImageCall
from api.preferences import prefers_no_wait
from api.routes.inference import SUBMIT_PROBLEMS, job_links
from api.schemas.accepted import Submitted
from api.schemas.openai_images import OpenAIError, OpenAIImages

router = APIRouter(prefix="/v1/images", tags=["openai"])

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": Submitted,
        "description": "With `Prefer: respond-async`: the job is accepted.",
        "links": job_links("$response.body#/request_id"),
    },
    **{status: {**problem, "model": OpenAIError} for status, problem in SUBMIT_PROBLEMS.items()},
    500: {"model": OpenAIError, "description": "An image failed, or the job was canceled."},
    504: {"model": OpenAIError, "description": "The images are not finished in time; their job goes on."},
}
PreferDep = Annotated[
    list[str] | None,
    Header(
        description="`respond-async` answers as soon as the job is accepted, as `POST /v1/inference` does. RFC 7240.",
    ),
]
_FILE: Final = {"type": "string", "format": "binary"}
_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {
                            "description": f"1 to {MAX_REFERENCES} reference images; also as `image[]`.",
                            "oneOf": [_FILE, {"type": "array", "items": _FILE, "maxItems": MAX_REFERENCES}],
                        },
                        **{
                            name: schema
                            for name, schema in GenerationRequest.model_json_schema()["properties"].items()
                            if "$ref" not in str(schema)
                        },
                        **{
                            name: {"type": "string", "description": "A list as in `POST /v1/inference`, as JSON."}
                            for name in LISTS
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "/generations", summary="Generate images", responses=_ANSWERS, response_model=OpenAIImages, dependencies=[JSON_BODY]
)
async def generate(
    body: GenerationRequest,
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    base_url: BaseUrlDep,
    idempotency_key: IdempotencyKeyDep = "",
    prefer: PreferDep = None,
    _tenant: TenantDep = "default",
) -> OpenAIImages | Response:
    """Render images and answer when all of them are finished, as OpenAI's endpoint of this name does.

    The job waits in the queue like any other. If the caller leaves, it is canceled, unless an `Idempotency-Key` lets a
    repeat of the call find it. With `Prefer: respond-async`, the answer comes at once, and the job is never canceled.
    The key also needs the role `read`.
    """
    require_role(caller, "read")
    size = len(await request.body())
    call = ImageCall(services, request, caller, body_bytes=size, idempotency_key=idempotency_key)
    if prefers_no_wait(prefer or ()):
        return await call.submit(body.job(), base_url=base_url)
    return await call.render(body.job(), response_format=body.response_format)


@router.post("/edits", summary="Edit images", responses=_ANSWERS, response_model=OpenAIImages, openapi_extra=_FORM)
async def edit(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    base_url: BaseUrlDep,
    idempotency_key: IdempotencyKeyDep = "",
    prefer: PreferDep = None,
    _tenant: TenantDep = "default",
) -> OpenAIImages | Response:
    """Render images from a prompt and reference images, as OpenAI's endpoint of this name does; masks are refused.

    The key also needs the role `read`.
    """
    require_role(caller, "read")
    call = ImageCall(services, request, caller, body_bytes=0, idempotency_key=idempotency_key)
    waits = not prefers_no_wait(prefer or ())
    if waits:
        call.check_room()
    received = await receive_edit(request, services, tenant=caller.upload_tenant)
    job = received.request.job(received.references)
    if not waits:
        return await call.submit(job, base_url=base_url)
    return await call.render(job, response_format=received.request.response_format)
