"""POST /v1/inference: the door. A 202 means that the job is on Redis' disk."""

from __future__ import annotations

import hashlib
import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Response

from api import views
from api.admission import admit
from api.deps import BaseUrlDep, ServicesDep
from api.resolve import check_items, find_model, refuse_unsupported, resolve, warn
from api.schemas import InferenceRequest, Problem, Submitted
from shared.celery_app import wake
from shared.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["inference"])

_PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The model, an adapter or a field cannot be served.",
        413: "The body is too large.",
        422: "A field is invalid, an adapter does not fit, or the Idempotency-Key was used with another body.",
        429: "The queue is full.",
        503: "Redis does not answer; repeat with the same Idempotency-Key.",
    }.items()
}


@router.post("/inference", status_code=HTTPStatus.ACCEPTED, responses=_PROBLEMS)
def submit(
    body: InferenceRequest,
    services: ServicesDep,
    base_url: BaseUrlDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: Annotated[str, Header(max_length=255)] = "",
    x_tenant: Annotated[str, Header(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default",
) -> Submitted:
    """Accept a job durably and answer where to poll. Repeat safely with the same `Idempotency-Key` for 24 hours."""
    settings, ledger = services.settings, services.ledger
    if len(body.prompts) > settings.api.max_prompts:
        raise InvalidRequest(f"{len(body.prompts)} prompts; at most {settings.api.max_prompts}", field="prompts")
    model = find_model(body.model)
    refuse_unsupported(body)
    base = ledger.base(model.id)
    adapters = admit(body.loras, model, base=base, settings=settings.adapters)
    items = resolve(body, model, adapters)
    check_items(items)
    warnings = warn(body, items, model)
    if base is None and body.loras:
        warnings.append(f"no worker has loaded {model.id} yet: adapters were checked for their form only")

    accepted = ledger.accept(
        str(uuid.uuid4()),
        items,
        record={"warnings": warnings},
        tenant=x_tenant,
        priority=body.priority,
        idempotency_key=idempotency_key,
        body_hash=_body_hash(body),
    )

    if accepted.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    else:
        background.add_task(wake, services.celery, model.id, count=len(items))
    answer = views.submitted(accepted, base_url=base_url)
    response.headers["Location"] = answer.status_url
    response.headers["Retry-After"] = "1"
    return answer


def _body_hash(body: InferenceRequest) -> str:
    """Identity of what was asked. The token is left out: it has no effect and must not leave a trace."""
    return hashlib.sha256(body.model_dump_json(exclude={"hf_token"}).encode()).hexdigest()
