"""GET /v1/events and GET /v1/requests/{id}/events: what changes of jobs, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from functools import partial
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.deps import ServicesDep
from api.doors.roles import Reader, listed_tenant
from api.events.job_feed import JobFeed
from api.events.jobs_feed import JobsFeed
from api.events.listener import Listener
from api.routes.requests import RequestIdPath
from api.schemas.events import JobsChange, JobsSnapshot, Preview
from api.schemas.job_status import Status
from api.schemas.problems import Problem
from shared.errors import RequestNotFound
from shared.keys.record import TENANT

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": Problem, "description": "A parameter is invalid."},
    429: {"model": Problem, "description": "Too many streams are open; try again after `Retry-After` seconds."},
}
_UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    **_PROBLEMS,
    404: {"model": Problem, "description": "No job has this id, or its record has expired."},
}

router = APIRouter(prefix="/v1")

PreviewsQuery = Annotated[bool, Query(description="Whether to send small pictures of the images that are rendered.")]
LastEventIdHeader = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        max_length=100,
        description="Id of the last event that the caller has. If the state is still the same, no snapshot is sent.",
    ),
]


async def _open_job(
    request_id: RequestIdPath,
    services: ServicesDep,
    caller: Reader,
    previews: PreviewsQuery = False,
    last_event_id: LastEventIdHeader = "",
) -> AsyncIterator[Listener]:
    owners = await to_thread.run_sync(services.ledger.live_jobs.owners, [request_id])
    # The same answer for another tenant's job: an id must not show whether there is one.
    if request_id not in owners or caller.visible_tenant not in (None, owners[request_id]):
        raise RequestNotFound(f"Request not found: {request_id}")
    with services.event_streams.open(
        ("job", request_id),
        partial(JobFeed, request_id),
        tenant=caller.tenant,
        last_id=last_event_id,
        previews=previews,
    ) as listener:
        yield listener


async def _open_jobs(
    services: ServicesDep,
    caller: Reader,
    previews: PreviewsQuery = False,
    tenant: Annotated[
        str | None,
        Query(
            description="Only jobs of this tenant. Keys with the role `admin` watch those of every tenant without it; "
            "others may name their own.",
            pattern=f"^{TENANT.pattern}$",
        ),
    ] = None,
    last_event_id: LastEventIdHeader = "",
) -> AsyncIterator[Listener]:
    shown = listed_tenant(caller, tenant)
    with services.event_streams.open(
        ("jobs", shown), partial(JobsFeed, shown), tenant=caller.tenant, last_id=last_event_id, previews=previews
    ) as listener:
        yield listener


@router.get(
    "/requests/{request_id}/events",
    summary="Watch a job",
    tags=["requests"],
    response_class=EventSourceResponse,
    responses={**_UNKNOWN, 200: {"model": Status | Preview, "description": "Events, until the job has ended."}},
)
async def watch_job(listener: Annotated[Listener, Depends(_open_job)]) -> AsyncIterable[ServerSentEvent]:
    """Stream the state of a job and its changes as server-sent events, about twice a second while something moves.

    * `snapshot` comes first: the body of the status.
    * `change` has the fields of the status that changed; `items` holds only the images that changed, by `index`.
    * `preview` is a picture of an image that is being rendered, if `previews` is true.
    * `end` comes after the last change of a job that has ended, with `{}`; then the server closes the stream.

    A comment comes every 15 s. The stream may end at any time: call again with `Last-Event-ID`.
    """
    async for event in listener.events():
        yield event


@router.get(
    "/events",
    summary="Watch all jobs",
    tags=["requests"],
    response_class=EventSourceResponse,
    responses={
        **_PROBLEMS,
        200: {"model": JobsSnapshot | JobsChange | Preview, "description": "Events, until the caller leaves."},
    },
)
async def watch_jobs(listener: Annotated[Listener, Depends(_open_jobs)]) -> AsyncIterable[ServerSentEvent]:
    """Stream the caller's jobs and their changes as server-sent events, about twice a second while something moves.

    * `snapshot` comes first: unfinished jobs, the last ones that ended, and a summary of the fleet.
    * `change` has the jobs that changed or came, each of them whole, the ids of those that went, and the summary if it
      changed.
    * `preview` is a picture of an image that is being rendered, if `previews` is true.

    A comment comes every 15 s. The stream may end at any time: call again with `Last-Event-ID`.
    """
    async for event in listener.events():
        yield event
