"""/v1/requests: poll, fetch, cancel and list. Each reads the ledger; none talks to a worker."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import views
from api.deps import Services, ServicesDep
from api.schemas import JobList, JobStatus, Problem, Result, Status
from shared.errors import RequestNotFound
from shared.job import TERMINAL
from shared.ledger import JobView

_INVALID: dict[int | str, dict[str, object]] = {422: {"model": Problem, "description": "A parameter is invalid."}}
_UNKNOWN = {**_INVALID, 404: {"model": Problem, "description": "No such request."}}

router = APIRouter(prefix="/v1/requests", tags=["requests"])


def _job(services: Services, request_id: str) -> JobView:
    job = services.ledger.job(request_id)
    if job is None:
        raise RequestNotFound(f"Request not found: {request_id}")
    return job


@router.get("/{request_id}/status", responses=_UNKNOWN, response_model=Status)
def get_status(request_id: str, services: ServicesDep) -> Response:
    """Where a job is."""
    job = _job(services, request_id)
    # Written here: the framework would check every field again, for each of many polls.
    return Response(
        views.status(job).model_dump_json(),
        media_type="application/json",
        headers={} if job.state in TERMINAL else {"Retry-After": "1"},
    )


@router.get("/{request_id}/result", responses=_UNKNOWN)
def get_result(request_id: str, services: ServicesDep) -> Result:
    """The images that are done, with freshly signed URLs."""
    job = _job(services, request_id)
    return views.result(job, services.store, url_ttl_s=services.settings.storage.url_ttl_s)


@router.post("/{request_id}/cancel", responses=_UNKNOWN)
def cancel(request_id: str, services: ServicesDep) -> Status:
    """Cancel what is left; finished images stay. Repeating it, or canceling a finished job, changes nothing."""
    services.ledger.cancel(request_id)
    return views.status(_job(services, request_id))


@router.get("", responses=_INVALID)
def list_requests(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", pattern="^[0-9a-f]{1,13}$")
    ] = None,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(description="Only jobs of this model.")] = None,
) -> JobList:
    """Jobs, newest first."""
    page = services.ledger.jobs(
        before=None if cursor is None else int(cursor, 16),
        limit=limit,
        state=None if status is None else views.STATES[status],
        model=model,
    )
    return JobList(
        data=[views.line(job) for job in page.jobs],
        has_more=page.next_before is not None,
        next_cursor=None if page.next_before is None else f"{page.next_before:x}",
    )
