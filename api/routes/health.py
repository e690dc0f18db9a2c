"""Probes: /health shows that the process runs, /ready that it can accept and answer jobs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from api.deps import Services, ServicesDep
from api.doors.roles import Anybody
from shared.errors import LedgerUnavailable
from shared.ledger.workers import FAULTY

_SLOTS_LISTED = 100

router = APIRouter(tags=["health"])


@router.get("/health", summary="Liveness")
async def health(_caller: Anybody) -> dict[str, str]:
    """Answer 200 while the process runs, without any other check."""
    # A coroutine, unlike the other endpoints: a store that hangs can fill the thread pool that those run in.
    return {"status": "healthy"}


@router.get("/ready", summary="Readiness", responses={503: {"model": dict[str, Any], "description": "Not ready."}})
def ready(services: ServicesDep, response: Response, caller: Anybody) -> dict[str, Any]:
    """Answer 200 when jobs can be accepted, else 503.

    `checks` states `ok` or the fault for Redis, the object store and each of the process's own threads. `workers` is
    the number of live workers, null while Redis does not answer; `slots` lists the first hundred of them, and
    `GET /v1/slots` all. `warnings` lists risks that do not block jobs: no live worker, so that accepted jobs wait; a
    Redis that may lose accepted jobs; a worker whose device keeps failing. A caller without an API key, where there are
    keys, sees `checks` as `ok` or `failed` alone.
    """
    checks = {"storage": services.storage_probe.state()}
    slots: list[dict[str, str]] = []
    warnings: list[str] = []
    workers: int | None = None
    registry = services.ledger.workers
    try:
        workers = services.ledger.slot_kinds.count().total()
        if not workers:
            warnings.append(_no_worker_warning(may_be_missing=registry.slots_may_be_missing()))
        if caller is not None:
            slots = _list_slots(services)
        warnings += [f"redis: {issue.detail}; {issue.remedy}" for issue in services.ledger.durability_issues()]
        faulty = [slot.name for slot in registry.unhealthy_slots() if slot.state == FAULTY]
        warnings += [f"worker {name}: its device failed repeatedly; check the GPU" for name in faulty]
        # The last calls: a Redis that only reads, or forbids a command, has shown the rest by then.
        services.ledger.check_permissions()
        services.ledger.check_writable()
        checks["redis"] = "ok"
    except LedgerUnavailable as error:
        checks["redis"] = str(error)
    checks |= {
        thread.name.removeprefix("flux2-"): "ok" if thread.is_alive() else "ended" for thread in services.threads
    }
    is_ready = all(state == "ok" for state in checks.values())
    if not is_ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    if caller is None:
        # A load balancer needs no more, and the rest names hosts and workers.
        checks = {name: state if state == "ok" else "failed" for name, state in checks.items()}
        warnings, workers, slots = [], None, []
    return {
        "status": "ready" if is_ready else "not_ready",
        "checks": checks,
        "warnings": warnings,
        "workers": workers,
        "slots": slots,
    }


def _list_slots(services: Services) -> list[dict[str, str]]:
    listed = [listed.slot for listed in services.ledger.slots.page(limit=_SLOTS_LISTED).slots]
    return [{"name": slot.name, "model": slot.model, "state": slot.state, "device": slot.device} for slot in listed]


def _no_worker_warning(*, may_be_missing: bool) -> str:
    if may_be_missing:
        return "no worker has reported since Redis stalled; ask again in a few seconds"
    return "no worker is running: jobs are accepted and wait; start one with flux2 worker"
