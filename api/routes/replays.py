"""POST /v1/replays: submit what reproduces a training config's sample previews."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, BackgroundTasks, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from api import views
from api.deps import BaseUrlDep, IdempotencyKeyDep, ServicesDep, TenantDep
from api.routes.inference import PROBLEMS
from api.schemas import ReplayRequest, ReplaySample, ReplaySubmitted
from api.submission import hash_body, prepare, store_together
from api.training_config.plan import plan
from shared.errors import InvalidRequest
from shared.request import InferenceRequest

router = APIRouter(prefix="/v1", tags=["replays"])

_REQUESTS = TypeAdapter(list[InferenceRequest])


@router.post("/replays", status_code=HTTPStatus.ACCEPTED, responses=PROBLEMS)
def submit_replay(
    body: ReplayRequest,
    services: ServicesDep,
    base_url: BaseUrlDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    x_tenant: TenantDep = "default",
) -> ReplaySubmitted:
    """Read an AI Toolkit config and submit a request for each multiplier its samples use, all or none."""
    replay = plan(body.config, lora=body.lora)
    if len(replay.samples) > services.settings.api.max_prompts:
        raise InvalidRequest(
            f"{len(replay.samples)} samples; at most {services.settings.api.max_prompts}", field="config"
        )
    try:
        bodies = _REQUESTS.validate_python(replay.requests)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    body_hash = hash_body(body)
    jobs = [
        prepare(
            services,
            request,
            # One for each part; all stand for the whole replay, so that another config finds the first part's taken.
            idempotency_key=f"{idempotency_key}#{number}" if idempotency_key else "",
            body_hash=body_hash,
            tenant=x_tenant,
        )
        for number, request in enumerate(bodies)
    ]
    requests = store_together(services, jobs, background)
    if all(accepted.is_repeat for accepted in requests):
        response.headers["Idempotency-Replayed"] = "true"
    return ReplaySubmitted(
        requests=[views.submitted(accepted, base_url=base_url) for accepted in requests],
        samples=[ReplaySample(request_id=requests[request].job_id, index=index) for request, index in replay.places],
        warnings=list(replay.warnings),
    )
