"""GET /v1/adapters: describe an adapter file and state whether the base model can use it, or list all files."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Services, ServicesDep
from api.schemas.inventory import AdapterFile, AdapterLine, AdapterList
from api.schemas.problems import Problem
from api.timestamps import format_time
from shared.adapters.inspection import inspect_adapter
from shared.adapters.listing import list_adapter_files
from shared.adapters.locate import locate_adapter
from shared.catalog import find_model

router = APIRouter(prefix="/v1", tags=["adapters"])

_PROBLEMS: dict[int | str, dict[str, object]] = {
    400: {"model": Problem, "description": "The model or the file does not exist."},
    422: {"model": Problem, "description": "A parameter is invalid, or the path leads out of the adapter root."},
}


@router.get("/adapters", summary="Inspect an adapter file, or list all", responses=_PROBLEMS)
def get_adapter(
    services: ServicesDep,
    path: Annotated[
        str | None,
        Query(
            description="File relative to the adapter root, as in `loras[].path`. Without it, the files are listed.",
            max_length=4096,
        ),
    ] = None,
    model: Annotated[str, Query(description="Id of the model to check the adapter against.")] = "flux2",
    limit: Annotated[int, Query(ge=1, le=1000, description="Number of files on a page of the list.")] = 200,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page of the list.", max_length=4096)
    ] = None,
) -> AdapterLine | AdapterList:
    """Describe an adapter file by its header: kind, ranks, layers, training step, sha256.

    A file that jobs cannot use is described as far as possible; `refused` states the reason. Without `path`, list the
    `.safetensors` files under the adapter root, one page at a time; their headers are not read.
    """
    if path is None:
        return _list_files(services, limit=limit, cursor=cursor)
    settings = services.settings.adapters
    workers = services.ledger.workers
    base = workers.base_model(find_model(model).id, workers.live_slots())
    found = inspect_adapter(
        locate_adapter(path, root=settings.root, allow_symlinks=settings.allow_symlinks),
        max_bytes=settings.max_bytes,
        layers=None if base is None else base.layers,
        model=model,
    )
    return AdapterLine(path=path, model=model, **asdict(found))


def _list_files(services: Services, *, limit: int, cursor: str | None) -> AdapterList:
    settings = services.settings.adapters
    page = list_adapter_files(settings.root, after=cursor or "", limit=limit, allow_symlinks=settings.allow_symlinks)
    return AdapterList(
        data=[
            AdapterFile(
                path=file.path,
                size_bytes=file.size_bytes,
                modified_at=format_time(datetime.fromtimestamp(file.modified_s, UTC)),
            )
            for file in page.files
        ],
        has_more=page.next_after is not None,
        next_cursor=page.next_after,
    )
