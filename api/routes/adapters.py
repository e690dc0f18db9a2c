"""GET /v1/adapters: what a file under the adapter root is, and whether the loaded base model can use it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import ServicesDep
from api.schemas import AdapterLine, Problem
from shared.adapters.inspection import inspect_adapter
from shared.adapters.locate import locate_adapter
from shared.resolve import find_model

router = APIRouter(prefix="/v1", tags=["adapters"])


@router.get("/adapters", responses={status: {"model": Problem} for status in (400, 422)})
def get_adapter(
    services: ServicesDep,
    path: Annotated[str, Query(description="As in `loras[].path`.", max_length=4096)],
    model: Annotated[str, Query(description="Model id to hold it to.")] = "flux2",
) -> AdapterLine:
    """Inspect one adapter. `refused` says why a job with it would be refused."""
    settings = services.settings.adapters
    base = services.ledger.workers.base_model(find_model(model).id, services.ledger.workers.live_slots())
    found = inspect_adapter(
        locate_adapter(path, root=settings.root),
        max_bytes=settings.max_bytes,
        layers=None if base is None else base.layers,
        model=model,
    )
    return AdapterLine(path=path, model=model, **asdict(found))
