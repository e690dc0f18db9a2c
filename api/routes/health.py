"""Probes: /health says that the process lives, /ready that it can take and answer jobs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from shared.errors import LedgerUnavailable

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Live. Not in the thread pool, which a store that hangs may fill."""
    return {"status": "healthy"}


@router.get("/ready")
def ready(services: ServicesDep, response: Response) -> dict[str, Any]:
    """200 when Redis and the object store answer; the body names what does not. Workers may be none: jobs wait.

    `warnings` tell what does not keep jobs from being taken, but endangers them: a Redis that is not durable, a worker
    whose device fails, a caretaker that ended.
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
    warnings += [f"worker {slot['name']}: its device failed repeatedly" for slot in slots if slot["state"] == "faulty"]
    checks |= {
        thread.name.removeprefix("flux2-"): "ok" if thread.is_alive() else "ended" for thread in services.threads
    }
    is_ready = all(state == "ok" for state in checks.values())
    if not is_ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"status": "ready" if is_ready else "not_ready", "checks": checks, "warnings": warnings, "slots": slots}
