"""POST /v1/inference: submit a job. A 202 means that the job is on Redis' disk."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, Header, Request, Response
from fastapi.responses import JSONResponse

from api.deps import JSON_BODY, BaseUrlDep, IdempotencyKeyDep, Services, ServicesDep, TenantDep
from api.doors.roles import Submitter
from api.job_waits import places_for
from api.openapi import BODY_RULES, link, with_rules
from api.poll_interval import first_poll_after_s
from api.preferences import preferred_wait_s
from api.result_view import result_view
from api.schemas.accepted import Submitted
from api.schemas.job_result import Result
from api.schemas.problems import Problem
from api.status_view import submitted_view
from api.submission import accept_job
from shared.errors import LedgerUnavailable
from shared.log_context import name_request
from shared.request import InferenceRequest

router = APIRouter(prefix="/v1", tags=["inference"])

#: The errors of a submit.
SUBMIT_PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The model or an adapter does not exist, a field has a value that the model cannot use, the body is not "
        "JSON, or the job has more images than the queue ever holds.",
        413: "The body is too large.",
        415: "The content type of the body is not `application/json`.",
        422: "A field is invalid, an adapter does not fit, no live worker can do what the job requires, or the "
        "Idempotency-Key was used with another body.",
        429: "The queue is full, or the API key has used up a limit; try again after `Retry-After` seconds.",
        503: "Redis, the object store or the host of a file does not answer, so the job may or may not be stored; "
        "repeat with the same Idempotency-Key.",
    }.items()
}

#: The rules of a submit that its schema cannot state.
SUBMIT_RULES = {
    "INVALID_REQUEST": "`webhook_events` comes with a `webhook_url`. The engine `ai-toolkit` gets no `sigmas`. "
    "`preset` is one of the model's. "
    "A request keeps `limits` of `GET /v1/models`, also with its trigger words filled in. A prompt "
    "for a model that strips `[IMG]` has none.",
    "VALIDATION_ERROR": "`prompts[].sigmas` decrease strictly to the final 0, also in single precision.",
    "LORA_NOT_FOUND": "Each adapter file exists.",
    "INVALID_LORA": "Each adapter file is one that the model can use, and comes from a place that is allowed.",
    "LORA_MISMATCH": "The layers of each adapter have the base model's shapes.",
    "MOE_FORMAT_NOT_SUPPORTED": "`loras[].transformer` is absent or null, because no model here has two transformers.",
    "invalid_reference": "Each reference image exists, and has a size and a shape that prompts can use.",
    "source_changed": "A file behind a link does not change while it is read.",
    "INVALID_WEBHOOK_URL": "`webhook_url` is a public https address, and the server sends webhooks.",
    "NO_SUITABLE_WORKER": "If workers serve the model, one of them can do what the job requires.",
    "JOB_TOO_LARGE": "A job has no more images than the queue ever holds.",
    "IDEMPOTENCY_KEY_REUSED": "An `Idempotency-Key` comes with one body.",
}


def job_links(request_id: str) -> dict[str, Any]:
    """Describe the calls about a job whose id is at a place of an answer, such as `$response.body#/request_id`."""
    job = "/v1/requests/{request_id}"
    return {
        "status": link("GET", f"{job}/status", "Poll the job.", request_id=request_id),
        "poll": link("GET", job, "Poll the job by its own URL.", request_id=request_id),
        "result": link("GET", f"{job}/result", "Fetch the job's images.", request_id=request_id),
        "cancel": link("POST", f"{job}/cancel", "Cancel the job.", request_id=request_id),
        "resend": link("POST", f"{job}/webhook/resend", "Send the job's webhook again.", request_id=request_id),
    }


PreferDep = Annotated[
    list[str] | None,
    Header(
        description="`wait=N` answers with the result if the job ends in N seconds, at most `FLUX2_API_MAX_WAIT_S`; "
        "`Preference-Applied` says how long the call waited at most. Needs the role `read` too, and is ignored without "
        "it. RFC 7240.",
    ),
]


@router.post(
    "/inference",
    summary="Submit a job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Submitted,
    responses={
        **SUBMIT_PROBLEMS,
        200: {"model": Result, "description": "With `Prefer: wait`: the job has ended, and this is its result."},
        202: {"links": job_links("$response.body#/request_id")},
    },
    openapi_extra=with_rules(SUBMIT_RULES, BODY_RULES),
    dependencies=[JSON_BODY],
)
async def submit(
    body: InferenceRequest,
    caller: Submitter,
    services: ServicesDep,
    base_url: BaseUrlDep,
    request: Request,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    prefer: PreferDep = None,
    _tenant: TenantDep = "default",
) -> Submitted | JSONResponse:
    """Accept a job and answer with the URLs to poll.

    Sizes, seeds and trigger words are fixed now, so that a repeated attempt gives the same images. To repeat the call
    safely, send an `Idempotency-Key`; the answer to a repeat has the header `Idempotency-Replayed: true`.

    With `Prefer: wait=N`, the answer is the job's result (200) if the job ends within N seconds, else the usual one.
    """
    # The result has links to images, which need their own role.
    longest_s = services.settings.api.max_wait_s if caller.may("read") else 0
    wait_s = preferred_wait_s(prefer or (), longest_s=longest_s)
    # After the answer, unless the job should end before it.
    wakeups = BackgroundTasks() if wait_s else background
    accept = partial(accept_job, services, body, wakeups, idempotency_key=idempotency_key, caller=caller)
    accepted = await services.reference_turns.run(body.prompts, accept)
    name_request(accepted.job_id)
    if accepted.is_repeat:
        response.headers["Idempotency-Replayed"] = "true"
    answer = submitted_view(accepted, base_url=base_url)
    response.headers["Location"] = answer.status_url
    if wait_s:
        await wakeups()
        waits, places = services.job_waits, places_for(len(await request.body()))
        ended = False
        if waits.has_room(caller.tenant, places=places):
            response.headers["Preference-Applied"] = f"wait={wait_s}"
            ended = await waits.wait(
                accepted.job_id,
                tenant=caller.tenant,
                places=places,
                timeout_s=wait_s,
                has_left=request.is_disconnected,
            )
        result = await to_thread.run_sync(_read_result, services, accepted.job_id) if ended else None
        if result is not None:
            response.headers["Content-Location"] = answer.result_url
            return JSONResponse(result.model_dump(), HTTPStatus.OK, headers=dict(response.headers))
    poll_after_s = partial(first_poll_after_s, services.ledger, accepted.job_id, images=len(body.prompts))
    response.headers["Retry-After"] = str(await to_thread.run_sync(poll_after_s))
    return answer


def _read_result(services: Services, job_id: str) -> Result | None:
    """Return the result of a job; None if Redis does not answer: the job is accepted in any case."""
    try:
        job = services.ledger.job(job_id)
    except LedgerUnavailable:
        return None
    return None if job is None else result_view(job, services.store, url_ttl_s=services.settings.storage.url_ttl_s)
