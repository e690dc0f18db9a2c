"""POST /v1/inference: the door. A 202 means that the job is on Redis' disk."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, BackgroundTasks, Response

from api import views
from api.deps import BaseUrlDep, IdempotencyKeyDep, ServicesDep, TenantDep
from api.schemas import Problem, Submitted
from api.submission import accept
from shared.request import InferenceRequest

router = APIRouter(prefix="/v1", tags=["inference"])

#: What a submit can be answered instead of 202.
PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The model, an adapter or a field cannot be served.",
        413: "The body is too large.",
        422: "A field is invalid, an adapter does not fit, or the Idempotency-Key was used with another body.",
        429: "The queue is full.",
        503: "Redis does not answer; repeat with the same Idempotency-Key.",
    }.items()
}


@router.post("/inference", status_code=HTTPStatus.ACCEPTED, responses=PROBLEMS)
def submit(
    body: InferenceRequest,
    services: ServicesDep,
    base_url: BaseUrlDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    x_tenant: TenantDep = "default",
) -> Submitted:
    """Accept a job durably and answer where to poll. Repeat safely with the same `Idempotency-Key` for 24 hours."""
    accepted = accept(services, body, background, idempotency_key=idempotency_key, tenant=x_tenant)
    if accepted.is_repeat:
        response.headers["Idempotency-Replayed"] = "true"
    answer = views.submitted(accepted, base_url=base_url)
    response.headers["Location"] = answer.status_url
    response.headers["Retry-After"] = "1"
    return answer
