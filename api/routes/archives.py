"""GET /v1/requests/{request_id}/archive: a job's images as one file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from api.archive import archive_name, archive_pieces
from api.deps import Services, ServicesDep
from api.doors.caller import Caller
from api.doors.roles import Reader
from api.piece_stream import stream_pieces
from api.result_view import NoUrls, result_view
from api.routes.requests import RequestIdPath, find_job
from api.schemas.job_result import Outputs
from api.schemas.problems import Problem

router = APIRouter(prefix="/v1/requests", tags=["requests"])

_ZIP: Final = "application/zip"
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {_ZIP: {"schema": {"type": "string", "format": "binary"}}}, "description": "The ZIP file."},
    404: {"model": Problem, "description": "No job has this id, or its record has expired."},
    422: {"model": Problem, "description": "A parameter is invalid."},
    429: {"model": Problem, "description": "Too many archives are being downloaded; try again after `Retry-After` s."},
    503: {"model": Problem, "description": "The first image cannot be read from the object store."},
}


async def _take_place(services: ServicesDep, caller: Reader) -> AsyncIterator[Caller]:
    with services.archive_places.take(caller.tenant):
        yield caller


@router.get(
    "/{request_id}/archive",
    summary="Download a job's images",
    responses=_RESPONSES,
    response_class=StreamingResponse,
    status_code=HTTPStatus.OK,
)
async def get_archive(
    request_id: RequestIdPath,
    services: ServicesDep,
    caller: Annotated[Caller, Depends(_take_place)],
    index: Annotated[
        list[int] | None, Query(description="Only the image with this index; may be repeated. Default: all images.")
    ] = None,
) -> StreamingResponse:
    """Return the images that are finished so far in one ZIP file, and `parameters.json` with what made each of them.

    If an image cannot be read, the connection ends early, so that the file is seen to be incomplete.
    """
    limiter = services.archive_limiter
    pieces, name = await to_thread.run_sync(partial(_open, services, request_id, caller, index), limiter=limiter)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return await stream_pieces(pieces, limiter=limiter, media_type=_ZIP, headers=headers)


def _open(
    services: Services, request_id: str, caller: Caller, indexes: Collection[int] | None
) -> tuple[Iterator[bytes], str]:
    job = find_job(services, request_id, caller)
    result = result_view(job, NoUrls(), url_ttl_s=0)
    if indexes is not None and result.outputs is not None:
        chosen = set(indexes)
        images = [image for image in result.outputs.images if image.index in chosen]
        result = result.model_copy(update={"outputs": Outputs(images=images)})
    return archive_pieces(job, result, services.store), archive_name(job)
