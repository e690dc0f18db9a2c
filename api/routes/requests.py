"""/v1/requests: poll, fetch, cancel and list jobs. Every endpoint reads the ledger and never calls a worker."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Response

from api.deps import Services, ServicesDep
from api.doors.caller import Caller
from api.doors.roles import Reader, Submitter, listed_tenant
from api.openapi import link, with_rules
from api.paging import PageCursor, accept_order, cursor_of
from api.poll_interval import poll_after_s
from api.result_view import result_view
from api.schemas.job_result import Result
from api.schemas.job_status import JobList, Status, StatusFilter
from api.schemas.problems import Problem
from api.status_view import LEDGER_STATE, job_line_view, status_view
from shared.catalog import MODELS, find_model
from shared.errors import InvalidRequest, RequestNotFound, WebhookWaiting
from shared.job import TERMINAL
from shared.keys.record import TENANT
from shared.ledger import JobView

_INVALID: dict[int | str, dict[str, object]] = {422: {"model": Problem, "description": "A parameter is invalid."}}
_UNKNOWN = {**_INVALID, 404: {"model": Problem, "description": "No job has this id, or its record has expired."}}

# The code of a job whose webhook cannot be sent.
_NO_WEBHOOK = "NO_WEBHOOK"

router = APIRouter(prefix="/v1/requests", tags=["requests"])

RequestIdPath = Annotated[str, Path(description="The `request_id` that the submit returned.")]


def find_job(services: Services, request_id: str, caller: Caller) -> JobView:
    """Return a job; raises `RequestNotFound` for an unknown id, and for a job that the caller may not see."""
    # The same answer for another tenant's job: an id must not show whether there is one.
    job = services.ledger.job(request_id, tenant=caller.visible_tenant)
    if job is None:
        raise RequestNotFound(f"Request not found: {request_id}")
    return job


@router.get("/{request_id}", summary="Poll a job by its own URL", responses=_UNKNOWN, response_model=Status)
@router.get("/{request_id}/status", summary="Poll a job", responses=_UNKNOWN, response_model=Status)
def get_status(request_id: RequestIdPath, services: ServicesDep, caller: Reader) -> Response:
    """Return the state and progress of a job and of each of its images.

    While the job runs, `Retry-After` states the seconds until the next poll: a tenth of `eta_s`, 1 to 30.
    """
    job = find_job(services, request_id, caller)
    # Serialised here: FastAPI would validate every field of the model a second time, on each of many polls.
    return Response(
        status_view(job).model_dump_json(),
        media_type="application/json",
        headers={} if job.state in TERMINAL else {"Retry-After": str(poll_after_s(job.eta_s))},
    )


@router.get("/{request_id}/result", summary="Fetch a job's images", responses=_UNKNOWN)
def get_result(request_id: RequestIdPath, services: ServicesDep, caller: Reader) -> Result:
    """Return the images that are finished so far, with freshly signed URLs, and the errors of failed ones."""
    job = find_job(services, request_id, caller)
    return result_view(job, services.store, url_ttl_s=services.settings.storage.url_ttl_s)


@router.post("/{request_id}/cancel", summary="Cancel a job", responses=_UNKNOWN)
def cancel(request_id: RequestIdPath, services: ServicesDep, caller: Submitter) -> Status:
    """Cancel the unfinished images of a job; finished images stay.

    Repeating the call, or canceling a job that has ended, changes nothing.
    """
    services.ledger.cancel(request_id, tenant=caller.visible_tenant)
    return status_view(find_job(services, request_id, caller))


@router.post(
    "/{request_id}/webhook/resend",
    summary="Send a job's webhook again",
    status_code=HTTPStatus.ACCEPTED,
    responses={
        **_UNKNOWN,
        400: {"model": Problem, "description": "The job has no webhook, or webhooks are disabled on this server."},
        409: {"model": Problem, "description": "The webhook has been neither delivered nor given up yet."},
    },
    openapi_extra=with_rules(
        {"NO_WEBHOOK": "The job was submitted with a `webhook_url`, and the server sends webhooks."},
        {"WEBHOOK_WAITING": "The job has ended, and its webhook was delivered or given up."},
    ),
)
def resend_webhook(request_id: RequestIdPath, services: ServicesDep, caller: Submitter) -> Status:
    """Send the webhook of an ended job again, whether it was delivered or given up.

    The message has the same id and body as before. It is tried for three days again.
    """
    if services.settings.webhook.secret is None:
        raise InvalidRequest(
            "webhooks are disabled on this server; set FLUX2_WEBHOOK_SECRET to enable them", code=_NO_WEBHOOK
        )
    answer = services.ledger.outbox.resend(request_id, tenant=caller.visible_tenant)
    if answer == "none":
        raise InvalidRequest(
            f"request {request_id} has no webhook_url, or its webhook_events leave this end of the job out; fetch its "
            "status instead",
            code=_NO_WEBHOOK,
        )
    if answer == "waiting":
        raise WebhookWaiting(
            f"the webhook of request {request_id} has been neither delivered nor given up; repeat the call when "
            "`webhook.state` in its status is `delivered` or `failed`"
        )
    return status_view(find_job(services, request_id, caller))


@router.get(
    "",
    summary="List jobs",
    responses={
        **_INVALID,
        200: {
            "links": {"next": link("GET", "/v1/requests", "Read the next page.", cursor="$response.body#/next_cursor")}
        },
        400: {"model": Problem, "description": "The model is unknown."},
    },
)
async def list_requests(
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=200, description="Number of jobs on a page, at most.")] = 50,
    cursor: PageCursor = None,
    status: Annotated[
        StatusFilter | None,
        Query(description="Only jobs in this state. `queued` means `in_queue`, and `running` means `in_progress`."),
    ] = None,
    model: Annotated[
        # An empty parameter has always meant every model.
        str | None, Query(description="Only jobs of this model.", json_schema_extra={"enum": ["", *MODELS]})
    ] = None,
    tenant: Annotated[
        str | None,
        Query(
            description="Only jobs of this tenant. Keys with the role `admin` list those of every tenant without it; "
            "others may name their own.",
            pattern=f"^{TENANT.pattern}$",
        ),
    ] = None,
) -> JobList:
    """Return the caller's jobs, newest first, one page at a time.

    With a filter a page may be short, or empty, while `has_more` is true: follow `next_cursor` until it is false.
    """
    read = partial(
        services.ledger.jobs,
        before=accept_order(cursor),
        limit=limit,
        state=None if status is None else LEDGER_STATE[status],
        model=find_model(model).id if model else None,
        tenant=listed_tenant(caller, tenant),
    )
    # Waits on the event loop: listings that wait for their turn must not take the threads that answer polls.
    page = await to_thread.run_sync(read, limiter=services.listing_limiter)
    return JobList(
        data=[job_line_view(job) for job in page.jobs],
        has_more=page.next_before is not None,
        # The job's number in hexadecimal: opaque to callers, and short.
        next_cursor=cursor_of(page.next_before),
    )
