"""/v1/sweeps: submit, estimate, poll, fetch, cancel and list sweeps."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated, Final

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, Path, Query, Response

from api.deps import JSON_BODY, BaseUrlDep, IdempotencyKeyDep, Services, ServicesDep, TenantDep
from api.doors.caller import Caller
from api.doors.roles import Reader, Submitter, listed_tenant
from api.openapi import BODY_RULES, link, with_rules
from api.paging import PageCursor, accept_order, cursor_of
from api.poll_interval import poll_after_s
from api.routes.inference import SUBMIT_PROBLEMS, SUBMIT_RULES
from api.schemas.problems import Problem
from api.schemas.sweep import SweepEstimate, SweepList, SweepRequest, SweepResult, SweepStatus, SweepSubmitted
from api.sweeps.acceptance import accept_sweep
from api.sweeps.estimate import estimate_sweep
from api.sweeps.view import cell_spans, line_view, result_view, status_view, submitted_view, sweep_record
from shared.errors import RequestNotFound
from shared.job import TERMINAL
from shared.keys.record import TENANT
from shared.ledger import SweepView
from shared.log_context import name_sweep

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

_INVALID: Final[dict[int | str, dict[str, object]]] = {
    422: {"model": Problem, "description": "A parameter is invalid."}
}
_UNKNOWN: Final = {
    **_INVALID,
    404: {"model": Problem, "description": "No sweep has this id, or its record has expired."},
}
_RULES: Final = {
    "INVALID_REQUEST": SUBMIT_RULES["INVALID_REQUEST"]
    + " A sweep has no more than `max_sweep_images` images and `max_sweep_jobs` jobs of `GET /v1/models`. An axis has "
    "each value once, checkpoints have different labels, and `multipliers` come with a checkpoint that is a file.",
}
# An estimate reads no file, and asks no worker.
_ESTIMATE_RULES: Final = {name: SUBMIT_RULES[name] for name in ("VALIDATION_ERROR", "INVALID_LORA")}
_LINKS: Final = {
    name: link(method, f"/v1/sweeps/{{sweep_id}}/{name}", text, sweep_id="$response.body#/sweep_id")
    for name, method, text in (
        ("status", "GET", "Poll the sweep."),
        ("result", "GET", "Fetch the sweep's images."),
        ("cancel", "POST", "Cancel the sweep."),
    )
}

SweepIdPath = Annotated[str, Path(description="The `sweep_id` that the submit returned.")]


def find_sweep(services: Services, sweep_id: str, caller: Caller) -> SweepView:
    """Return a sweep; raise `RequestNotFound` for an id that is unknown, or of a sweep that this caller may not see."""
    sweep = services.ledger.sweeps.read(sweep_id, tenant=caller.visible_tenant)
    if sweep is None:
        raise RequestNotFound(f"Sweep not found: {sweep_id}")
    return sweep


@router.post(
    "",
    summary="Submit a sweep",
    status_code=HTTPStatus.ACCEPTED,
    responses={**SUBMIT_PROBLEMS, 202: {"links": _LINKS}},
    openapi_extra=with_rules(SUBMIT_RULES, _RULES, BODY_RULES),
    dependencies=[JSON_BODY],
)
async def submit_sweep(
    body: SweepRequest,
    caller: Submitter,
    services: ServicesDep,
    base_url: BaseUrlDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: IdempotencyKeyDep = "",
    _tenant: TenantDep = "default",
) -> SweepSubmitted:
    """Accept every combination of checkpoints, multipliers, prompts, sizes, steps, guidance scales and seeds.

    Each combination of a checkpoint and a multiplier becomes a job. Either all jobs are accepted or none.
    """
    accept = partial(accept_sweep, services, body, background, idempotency_key=idempotency_key, caller=caller)
    sweep = await services.reference_turns.run(body.prompts, accept)
    name_sweep(sweep.sweep_id)
    if sweep.is_repeat:
        response.headers["Idempotency-Replayed"] = "true"
    answer = submitted_view(sweep, base_url=base_url)
    response.headers["Location"] = answer.status_url
    return answer


@router.post(
    "/estimate",
    summary="Estimate a sweep",
    responses={status: SUBMIT_PROBLEMS[status] for status in (400, 413, 415, 422)},
    openapi_extra=with_rules(_ESTIMATE_RULES, _RULES, BODY_RULES),
    dependencies=[JSON_BODY],
)
async def estimate(
    body: SweepRequest, caller: Submitter, services: ServicesDep, _tenant: TenantDep = "default"
) -> SweepEstimate:
    """Return what a sweep would take, without accepting it. Its files are not read."""
    read = partial(estimate_sweep, services, body, caller=caller)
    # Waits on the event loop: estimates that wait for their turn must not take the threads that answer polls.
    return await to_thread.run_sync(read, limiter=services.listing_limiter)


@router.get("/{sweep_id}/status", summary="Poll a sweep", responses=_UNKNOWN, response_model=SweepStatus)
def get_status(sweep_id: SweepIdPath, services: ServicesDep, caller: Reader) -> Response:
    """Return how many images of a sweep have which state, and the state of each of its jobs.

    While the sweep runs, `Retry-After` states the seconds until the next poll.
    """
    sweep = find_sweep(services, sweep_id, caller)
    outlook = services.ledger.sweeps.outlook(sweep)
    return Response(
        status_view(sweep, outlook).model_dump_json(),
        media_type="application/json",
        headers={} if sweep.state in TERMINAL else {"Retry-After": str(poll_after_s(outlook.eta_s))},
    )


@router.get(
    "/{sweep_id}/result",
    summary="Fetch a sweep's images",
    responses={
        **_UNKNOWN,
        200: {
            "links": {
                "next": link(
                    "GET",
                    "/v1/sweeps/{sweep_id}/result",
                    "Read the next page.",
                    sweep_id="$response.body#/sweep_id",
                    cursor="$response.body#/next_cursor",
                )
            }
        },
    },
)
def get_result(
    sweep_id: SweepIdPath,
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=1000, description="Number of images on a page, at most.")] = 500,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", pattern="^[0-9]{1,9}$")
    ] = None,
) -> SweepResult:
    """Return the images of a sweep, finished or not, each with its values of the axes."""
    sweep = find_sweep(services, sweep_id, caller)
    record = sweep_record(sweep)
    start = int(cursor or 0)
    spans = cell_spans(sweep, record, start=start, limit=limit)
    items = services.ledger.sweeps.items(spans)
    if items is None:
        raise RequestNotFound(f"Sweep not found: {sweep_id}")
    return result_view(
        sweep,
        record,
        items,
        spans,
        next_start=start + limit if start + limit < record.images else None,
        store=services.store,
        url_ttl_s=services.settings.storage.url_ttl_s,
    )


@router.post("/{sweep_id}/cancel", summary="Cancel a sweep", responses=_UNKNOWN)
def cancel(sweep_id: SweepIdPath, services: ServicesDep, caller: Submitter) -> SweepStatus:
    """Cancel the unfinished images of a sweep; finished images stay.

    Repeating the call, or canceling a sweep that has ended, changes nothing.
    """
    sweeps = services.ledger.sweeps
    sweeps.cancel(find_sweep(services, sweep_id, caller))
    sweep = find_sweep(services, sweep_id, caller)
    return status_view(sweep, sweeps.outlook(sweep))


@router.get(
    "",
    summary="List sweeps",
    responses={
        **_INVALID,
        200: {
            "links": {"next": link("GET", "/v1/sweeps", "Read the next page.", cursor="$response.body#/next_cursor")}
        },
    },
)
async def list_sweeps(
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=200, description="Number of sweeps on a page, at most.")] = 50,
    cursor: PageCursor = None,
    tenant: Annotated[
        str | None,
        Query(
            description="Only sweeps of this tenant. Keys with the role `admin` list those of every tenant without it; "
            "others may name their own.",
            pattern=f"^{TENANT.pattern}$",
        ),
    ] = None,
) -> SweepList:
    """Return the caller's sweeps, newest first, one page at a time."""
    read = partial(
        services.ledger.sweeps.page,
        before=accept_order(cursor),
        limit=limit,
        tenant=listed_tenant(caller, tenant),
    )
    page = await to_thread.run_sync(read, limiter=services.listing_limiter)
    return SweepList(
        data=[line_view(sweep) for sweep in page.sweeps],
        has_more=page.next_before is not None,
        next_cursor=cursor_of(page.next_before),
    )
