"""GET /v1/adapters: describe an adapter file, and state whether the base model can use it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import ServicesDep
from api.schemas.inventory import AdapterLine
from api.schemas.problems import Problem
from shared.adapters.inspection import inspect_adapter
from shared.adapters.locate import locate_adapter
from shared.resolve import find_model

router = APIRouter(prefix="/v1", tags=["adapters"])

_PROBLEMS: dict[int | str, dict[str, object]] = {
    400: {"model": Problem, "description": "The model or the file does not exist."},
    422: {"model": Problem, "description": "A parameter is invalid, or the path leads out of the adapter root."},
}


@router.get("/adapters", summary="Inspect an adapter file", responses=_PROBLEMS)
def get_adapter(
    services: ServicesDep,
    path: Annotated[
        str, Query(description="File relative to the adapter root, as in `loras[].path`.", max_length=4096)
    ],
    model: Annotated[str, Query(description="Id of the model to check the adapter against.")] = "flux2",
) -> AdapterLine:
    """Describe an adapter file by its header: kind, ranks, layers, training step, sha256.

    A file that jobs cannot use is described as far as possible; `refused` states the reason.
    """
    settings = services.settings.adapters
    workers = services.ledger.workers
    base = workers.base_model(find_model(model).id, workers.live_slots())
    found = inspect_adapter(
        locate_adapter(path, root=settings.root),
        max_bytes=settings.max_bytes,
        layers=None if base is None else base.layers,
        model=model,
    )
    return AdapterLine(path=path, model=model, **asdict(found))
