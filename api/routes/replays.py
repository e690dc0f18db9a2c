"""POST /v1/replays: submit what reproduces a training config's sample previews."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, BackgroundTasks
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from api import views
from api.deps import BaseUrlDep, IdempotencyKeyDep, ServicesDep, TenantDep
from api.routes.inference import PROBLEMS
from api.schemas import Replayed, ReplayRequest, ReplaySample
from api.submission import accept
from shared.replay import plan
from shared.request import InferenceRequest

router = APIRouter(prefix="/v1", tags=["replays"])

_REQUESTS = TypeAdapter(list[InferenceRequest])


@router.post("/replays", status_code=HTTPStatus.ACCEPTED, responses=PROBLEMS)
def submit_replay(
    body: ReplayRequest,
    services: ServicesDep,
    base_url: BaseUrlDep,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    x_tenant: TenantDep = "default",
) -> Replayed:
    """Read an AI Toolkit config and submit a request for each multiplier its samples use."""
    replay = plan(body.config, lora=body.lora)
    try:
        bodies = _REQUESTS.validate_python(replay.requests)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    requests = [
        accept(
            services,
            request,
            background,
            idempotency_key=f"{idempotency_key}#{number}" if idempotency_key else "",
            tenant=x_tenant,
        )
        for number, request in enumerate(bodies)
    ]
    return Replayed(
        requests=[views.submitted(accepted, base_url=base_url) for accepted in requests],
        samples=[ReplaySample(request_id=requests[request].job_id, index=index) for request, index in replay.places],
        warnings=list(replay.warnings),
    )
