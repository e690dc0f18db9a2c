"""Probes: /health says that the process lives, /ready that it can take and answer jobs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from shared.errors import LedgerUnavailable, StorageUnavailable

router = APIRouter(tags=["health"])


@router.get("/health")
def health() -> dict[str, str]:
    """Live."""
    return {"status": "healthy"}


@router.get("/ready")
def ready(services: ServicesDep, response: Response) -> dict[str, Any]:
    """200 when Redis and the object store answer; the body names what does not. Workers may be none: jobs wait."""
    checks: dict[str, str] = {}
    slots: list[dict[str, str]] = []
    try:
        slots = [
            {"name": slot.name, "model": slot.model, "state": slot.state, "device": slot.device}
            for slot in services.ledger.slots()
        ]
        checks["redis"] = "ok"
    except LedgerUnavailable as error:
        checks["redis"] = str(error)
    try:
        services.store.check()
        checks["storage"] = "ok"
    except StorageUnavailable as error:
        checks["storage"] = str(error)
    is_ready = all(state == "ok" for state in checks.values())
    if not is_ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"status": "ready" if is_ready else "not_ready", "checks": checks, "slots": slots}
