"""GET /v1/adapters: describe an adapter file and state whether the base model can use it, or list all files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from api.adapter_list import list_adapters
from api.deps import Services, ServicesDep
from api.doors.adapters import permitted_source
from api.doors.caller import Caller
from api.doors.roles import Reader
from api.openapi import link, with_rules
from api.schemas.inventory import AdapterLine, AdapterList
from api.schemas.problems import Problem
from shared.adapters.inspection import Inspection, inspect_adapter, inspect_remote
from shared.adapters.locate import locate_adapter
from shared.catalog import find_model
from shared.sources.source import LocalFile

router = APIRouter(prefix="/v1", tags=["adapters"])

_PROBLEMS: dict[int | str, dict[str, object]] = {
    400: {"model": Problem, "description": "The model or the file does not exist."},
    422: {"model": Problem, "description": "A parameter is invalid, or the path leads out of the adapter root."},
}


_RULES = {
    # Not in the schema: without `path`, the parameter has no effect.
    "MODEL_NOT_FOUND": "With `path`, `model` is one of `GET /v1/models`.",
    "LORA_NOT_FOUND": "The file exists.",
    "INVALID_LORA": "`path` is under the adapter root, or a link to a place that is allowed.",
    "INVALID_REQUEST": "`path` is the name of a file or a link.",
}

_LINKS = {
    "next": link("GET", "/v1/adapters", "Read the next page of the list.", cursor="$response.body#/next_cursor"),
}


@router.get(
    "/adapters",
    summary="Inspect an adapter file, or list all",
    responses={**_PROBLEMS, 200: {"links": _LINKS}},
    openapi_extra=with_rules(_RULES),
)
def get_adapter(
    services: ServicesDep,
    caller: Reader,
    path: Annotated[
        str | None,
        Query(
            description="File as in `loras[].path`: a path under the adapter root, or a link. Without it, the list.",
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
    `.safetensors` files under the adapter root and then the uploaded ones, one page at a time; they are not read.
    """
    if path is None:
        return list_adapters(services, caller, limit=limit, cursor=cursor or "")
    workers = services.ledger.workers
    base = workers.base_model(find_model(model).id, services.ledger.slot_kinds.count())
    found = _inspect(services, caller, path, layers=None if base is None else base.layers, model=model)
    return AdapterLine(path=path, model=model, **asdict(found))


def _inspect(
    services: Services, caller: Caller, path: str, *, layers: Mapping[str, tuple[int, int]] | None, model: str
) -> Inspection:
    source = permitted_source(path, caller, services.settings.adapters)
    if not isinstance(source, LocalFile):
        return inspect_remote(source, services.remote_adapters, layers=layers, model=model)
    settings = services.settings.adapters
    place = locate_adapter(path, root=settings.root, allow_symlinks=settings.allow_symlinks)
    return inspect_adapter(place, max_bytes=settings.max_bytes, layers=layers, model=model)
