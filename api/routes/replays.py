"""POST /v1/replays: submit the jobs that reproduce a training config's sample previews."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, Depends, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from api.deps import JSON_BODY, BaseUrlDep, IdempotencyKeyDep, Services, ServicesDep, TenantDep
from api.doors.caller import Caller
from api.doors.roles import Submitter
from api.openapi import BODY_RULES, with_rules
from api.routes.inference import SUBMIT_PROBLEMS, SUBMIT_RULES, job_links
from api.schemas.accepted import ReplayRequest, ReplaySample, ReplaySubmitted
from api.status_view import submitted_view
from api.submission import hash_body, open_cache, prepare_job, store_jobs
from shared.errors import InvalidRequest, ReferenceRefused, SourceUnavailable
from shared.ledger import AcceptedJob
from shared.log_context import name_request
from shared.request import InferenceRequest
from shared.resolved_size import check_resolved_size
from shared.training_config.plan import ReplayPlan, plan_replay

router = APIRouter(prefix="/v1", tags=["replays"])

_FIELD = re.compile(r"prompts\[(\d+)\]\.(ctrl_img\w*)")
_SHOWN_CHARS = 300
_RULES = {
    "INVALID_CONFIG": "`config` is an AI Toolkit config with samples that can be replayed.",
    "MODEL_NOT_FOUND": "The config names a model of `GET /v1/models`.",
    "REFERENCE_IMAGES_NEEDED": "`images` has each reference image that the config names.",
    "VALIDATION_ERROR": "Each sample of the config keeps the limits of a prompt.",
}
_REQUESTS = TypeAdapter(list[InferenceRequest])


@dataclass(frozen=True)
class _CheckedPlan:
    """A plan with its requests validated, and the identity of the call's body."""

    plan: ReplayPlan
    requests: list[InferenceRequest]
    body_hash: str


async def _plan(body: ReplayRequest, services: ServicesDep) -> _CheckedPlan:
    # Waits on the event loop: configs that wait for their turn must not take the threads that answer polls.
    return await to_thread.run_sync(partial(_plan_now, body, services), limiter=services.config_limiter)


def _plan_now(body: ReplayRequest, services: Services) -> _CheckedPlan:
    limits = services.settings.api
    plan = plan_replay(
        body.config,
        max_samples=limits.max_prompts,
        max_text_bytes=limits.max_body_bytes,
        lora=body.lora,
        images=body.images,
    )
    # A sample beyond the limits gets the same answer as a field of a request: 422 with the field's path.
    try:
        requests = _REQUESTS.validate_python(plan.requests)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    check_resolved_size(requests, max_bytes=limits.max_body_bytes, field="config")
    return _CheckedPlan(plan, requests, hash_body(body))


@router.post(
    "/replays",
    summary="Replay a training config",
    status_code=HTTPStatus.ACCEPTED,
    responses={**SUBMIT_PROBLEMS, 202: {"links": job_links("$response.body#/requests/0/request_id")}},
    openapi_extra=with_rules(SUBMIT_RULES, _RULES, BODY_RULES),
    dependencies=[JSON_BODY],
)
async def submit_replay(
    # First: nobody without the role makes the API read a config.
    caller: Submitter,
    # Not the body as well: FastAPI would validate it twice, and report each error twice.
    checked: Annotated[_CheckedPlan, Depends(_plan)],
    services: ServicesDep,
    base_url: BaseUrlDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    _tenant: TenantDep = "default",
) -> ReplaySubmitted:
    """Read an AI Toolkit config and submit jobs that render its sample previews again.

    Each adapter strength in the samples becomes one job. Either all jobs are accepted or none. Reference images
    (`ctrl_img`) are files of the trainer's host: upload them first, and name them in `images`.
    """
    prompts = [prompt for request in checked.requests for prompt in request.prompts]
    accept = partial(_accept, services, checked, background, idempotency_key=idempotency_key, caller=caller)
    accepted = await services.reference_turns.run(prompts, accept)
    name_request(*(job.job_id for job in accepted))
    if all(job.is_repeat for job in accepted):
        response.headers["Idempotency-Replayed"] = "true"
    return ReplaySubmitted(
        requests=[submitted_view(job, base_url=base_url) for job in accepted],
        samples=[
            ReplaySample(request_id=accepted[number].job_id, index=index) for number, index in checked.plan.positions
        ],
        warnings=list(checked.plan.warnings),
    )


def _accept(
    services: Services, checked: _CheckedPlan, background: BackgroundTasks, *, idempotency_key: str, caller: Caller
) -> list[AcceptedJob]:
    """Store the jobs of a plan, all of them or none."""
    cache = open_cache(services, caller)
    jobs = []
    for number, request in enumerate(checked.requests):
        with _naming_images(request, checked.plan.images):
            job = prepare_job(
                services,
                request,
                # A key for each job, but one hash for the whole config: another one conflicts with the first job's key.
                idempotency_key=f"{idempotency_key}#{number}" if idempotency_key else "",
                body_hash=checked.body_hash,
                caller=caller,
                cache=cache,
            )
        jobs.append(job)
    return store_jobs(services, jobs, background, caller=caller)


@contextmanager
def _naming_images(request: InferenceRequest, images: Mapping[str, str]) -> Iterator[None]:
    """Name a reference image at fault as the config does, because the caller did not write the request."""
    try:
        yield
    except (InvalidRequest, ReferenceRefused, SourceUnavailable) as error:
        place = _FIELD.fullmatch(error.field or "")
        if place is None:
            raise
        value = getattr(request.prompts[int(place[1])], place[2])
        name = next(name for name, given in images.items() if given == value)
        # The cause has no field in its words. A name that is its own value is a link in the config.
        field, shown = ("config", _without_secret(name)) if name == value else ("images", name)
        raise type(error)(f"{shown}: {error.__cause__ or error}", field=field) from error


def _without_secret(link: str) -> str:
    return link.partition("?")[0][:_SHOWN_CHARS]
