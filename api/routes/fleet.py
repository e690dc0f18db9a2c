"""GET /v1/slots and GET /v1/queue: what each slot does, and what waits for them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Query

from api.deps import Services, ServicesDep
from api.doors.roles import Reader, listed_tenant
from api.fleet_view import queue_view, slot_list_view
from api.openapi import link
from api.schemas.fleet import QueueReport, SlotList
from api.schemas.problems import Problem
from shared.keys.record import TENANT

router = APIRouter(prefix="/v1", tags=["fleet"])

_INVALID: Final[dict[int | str, dict[str, Any]]] = {422: {"model": Problem, "description": "A parameter is invalid."}}
_PAGES: Final[dict[int | str, dict[str, Any]]] = {
    **_INVALID,
    200: {"links": {"next": link("GET", "/v1/slots", "Read the next page.", cursor="$response.body#/next_cursor")}},
}


@router.get("/slots", summary="List the slots", responses=_PAGES)
async def list_slots(
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=500, description="Number of slots on a page, at most.")] = 100,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", min_length=1, max_length=1024)
    ] = None,
) -> SlotList:
    """Return the live slots in the order of their names: what each renders, and which adapters it has merged.

    Every caller sees all slots and their states. Images and adapters are those of the caller's tenant; with the role
    `admin`, those of all.
    """
    read = partial(services.ledger.slots.page, after=cursor, limit=limit)
    # Waits on the event loop: listings that wait for their turn must not take the threads that answer polls.
    page = await to_thread.run_sync(read, limiter=services.listing_limiter)
    return slot_list_view(page, caller)


@router.get("/queue", summary="Show the queue", responses=_INVALID)
async def get_queue(
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=1000, description="Number of lines, at most.")] = 100,
    tenant: Annotated[
        str | None,
        Query(
            pattern=f"^{TENANT.pattern}$",
            description="Only this tenant's images; another tenant's need the role `admin`.",
        ),
    ] = None,
) -> QueueReport:
    """Return how many images wait and run, by tenant and adapters, and how many were finished in the last minute.

    They are those of the caller's tenant; with the role `admin`, those of all.
    """
    read = partial(_read_queue, services, tenant=listed_tenant(caller, tenant), limit=limit)
    return await to_thread.run_sync(read, limiter=services.listing_limiter)


def _read_queue(services: Services, *, tenant: str | None, limit: int) -> QueueReport:
    states: Counter[str] = Counter()
    for kind, count in services.ledger.slot_kinds.count().items():
        states[kind.state] += count
    return queue_view(services.ledger.queue.overview(tenant=tenant), slot_states=states, limit=limit)
