"""Probes: /health shows that the process runs, /ready that it can accept and answer jobs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from shared.errors import LedgerUnavailable

router = APIRouter(tags=["health"])


@router.get("/health", summary="Liveness")
async def health() -> dict[str, str]:
    """Answer 200 while the process runs, without any other check."""
    # A coroutine, unlike the other endpoints: a store that hangs can fill the thread pool that those run in.
    return {"status": "healthy"}


@router.get("/ready", summary="Readiness")
def ready(services: ServicesDep, response: Response) -> dict[str, Any]:
    """Answer 200 when jobs can be accepted, else 503.

    `checks` states `ok` or the fault for Redis, the object store and each of the process's own threads. `slots` lists
    the live workers; if there is no live worker, jobs are accepted and wait. `warnings` lists risks that do not block
    jobs: a Redis that may lose accepted jobs, or a worker whose device keeps failing.
    """
    checks = {"storage": services.storage_probe.state()}
    slots: list[dict[str, str]] = []
    warnings: list[str] = []
    try:
        slots = [
            {"name": slot.name, "model": slot.model, "state": slot.state, "device": slot.device}
            for slot in services.ledger.workers.live_slots()
        ]
        warnings += [f"redis: {issue.detail}; {issue.remedy}" for issue in services.ledger.durability_issues()]
        checks["redis"] = "ok"
    except LedgerUnavailable as error:
        checks["redis"] = str(error)
    warnings += [
        f"worker {slot['name']}: its device failed repeatedly; check the GPU"
        for slot in slots
        if slot["state"] == "faulty"
    ]
    checks |= {
        thread.name.removeprefix("flux2-"): "ok" if thread.is_alive() else "ended" for thread in services.threads
    }
    is_ready = all(state == "ok" for state in checks.values())
    if not is_ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"status": "ready" if is_ready else "not_ready", "checks": checks, "warnings": warnings, "slots": slots}
