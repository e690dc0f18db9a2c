"""GET /v1/images: the finished images of all jobs, newest first."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BeforeValidator

from api.deps import Services, ServicesDep
from api.doors.roles import Reader, listed_tenant
from api.openapi import link
from api.result_view import image_line_view
from api.schemas.job_result import ImageList
from api.schemas.problems import Problem
from shared.catalog import MODELS, find_model
from shared.keys.record import TENANT
from shared.ledger.image_listing import ImageFilter
from shared.ledger.views import ImageCursor

router = APIRouter(prefix="/v1", tags=["requests"])

_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"links": {"next": link("GET", "/v1/images", "Read the next page.", cursor="$response.body#/next_cursor")}},
    400: {"model": Problem, "description": "The model is unknown."},
    422: {"model": Problem, "description": "A parameter is invalid."},
}


def _written_time(text: Any) -> Any:
    # pydantic also reads numbers, as seconds since the epoch, and times without a zone.
    if isinstance(text, str) and not re.fullmatch(
        r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text
    ):
        raise ValueError("write a time like 2026-01-31T12:00:00Z")
    return text


_Time = Annotated[AwareDatetime | None, BeforeValidator(_written_time)]


@router.get("/images", summary="List finished images", responses=_RESPONSES, response_model=ImageList)
async def list_images(
    services: ServicesDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=200, description="Number of images on a page, at most.")] = 50,
    cursor: Annotated[
        str | None,
        Query(description="`next_cursor` of the previous page.", pattern="^[0-9a-f]{1,13}[.][0-9a-f]{1,8}$"),
    ] = None,
    adapter: Annotated[
        str, Query(max_length=1000, description="Only images with an adapter whose path has this text, in any case.")
    ] = "",
    prompt: Annotated[
        str, Query(max_length=1000, description="Only images whose prompt has this text, in any case.")
    ] = "",
    seed: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Only images with this seed.")] = None,
    since: Annotated[_Time, Query(description="Only images of jobs that were accepted at this time or later.")] = None,
    until: Annotated[_Time, Query(description="Only images of jobs that were accepted before this time.")] = None,
    request_id: Annotated[str | None, Query(max_length=64, description="Only images of this job.")] = None,
    model: Annotated[
        str | None,
        Query(description="Only images of this model.", json_schema_extra={"enum": ["", *MODELS]}),
    ] = None,
    tenant: Annotated[
        str | None,
        Query(
            description="Only images of this tenant. Keys with the role `admin` list those of every tenant without it; "
            "others may name their own.",
            pattern=f"^{TENANT.pattern}$",
        ),
    ] = None,
) -> Response:
    """Return the finished images of the caller's jobs: the newest job first, its images in the order of its prompts.

    With a filter a page may be short, or empty, while `has_more` is true: follow `next_cursor` until it is false.
    """
    wanted = ImageFilter(
        adapter=adapter,
        prompt=prompt,
        seed=seed,
        job_id=request_id,
        tenant=listed_tenant(caller, tenant),
        model=find_model(model).id if model else None,
        since_ms=None if since is None else int(since.timestamp() * 1000),
        until_ms=None if until is None else int(until.timestamp() * 1000),
    )
    read = partial(_read, services, wanted, cursor=_parse_cursor(cursor), limit=limit)
    # Waits on the event loop: listings that wait for their turn must not take the threads that answer polls.
    body = await to_thread.run_sync(read, limiter=services.listing_limiter)
    return Response(body, media_type="application/json")


def _read(services: Services, wanted: ImageFilter, *, cursor: ImageCursor | None, limit: int) -> str:
    page = services.ledger.images.page(wanted, cursor=cursor, limit=limit)
    url_ttl_s = services.settings.storage.url_ttl_s
    following = page.next_cursor
    return ImageList(
        data=[image_line_view(image, services.store, url_ttl_s=url_ttl_s) for image in page.images],
        has_more=following is not None,
        # In hexadecimal, as in the listing of jobs.
        next_cursor=None if following is None else f"{following.order:x}.{following.index:x}",
    ).model_dump_json()


def _parse_cursor(text: str | None) -> ImageCursor | None:
    if text is None:
        return None
    order, _, index = text.partition(".")
    return ImageCursor(int(order, 16), int(index, 16))
