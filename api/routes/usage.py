"""GET /v1/usage: what jobs used, by day, tenant, API key, model and adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from typing import Annotated, Any, Final, Literal, cast

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Response
from pydantic import AfterValidator, BeforeValidator

from api.deps import Services, ServicesDep
from api.doors.roles import Reader, listed_tenant
from api.openapi import with_rules
from api.schemas.problems import Problem
from api.schemas.usage import Group, UsageReport
from api.usage_report import GROUPS, report_usage, write_csv
from shared.errors import InvalidRequest
from shared.keys.record import TENANT

router = APIRouter(prefix="/v1", tags=["usage"])

_CSV: Final = "text/csv"
# Of days without usage, Redis answers 4,000 questions in 20 ms.
_MOST_DAYS: Final = 3660
_GROUP: Final = f"({'|'.join(GROUPS)})"
_RULES: Final = {
    "INVALID_REQUEST": f"`from` is not after `to`, and less than {_MOST_DAYS} days before it; a call reads at most "
    "100,000 stored rows."
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {_CSV: {"schema": {"type": "string"}}}},
    400: {"model": Problem, "description": "`from` is after `to`, or there are too many days or rows."},
    422: {"model": Problem, "description": "A parameter is invalid."},
}


def _plain_date(text: Any) -> Any:
    # pydantic also reads numbers, as seconds since the epoch.
    if isinstance(text, str) and not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError("write a day like 2026-01-31")
    return text


def _known_columns(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in GROUPS]
    if unknown:
        raise ValueError(
            f"there is no column {unknown[0]!r}; use some of {', '.join(GROUPS)}, with commas between them"
        )
    return text


DayDep = Annotated[date | None, BeforeValidator(_plain_date)]


@router.get(
    "/usage",
    summary="Show what was used",
    responses=_RESPONSES,
    response_model=UsageReport,
    openapi_extra=with_rules(_RULES),
)
async def get_usage(
    services: ServicesDep,
    caller: Reader,
    first: Annotated[
        DayDep, Query(alias="from", description="First day, like 2026-01-01. Default: the first of the month of `to`.")
    ] = None,
    last: Annotated[
        DayDep,
        Query(alias="to", description="Last day, which is included. Default: today. Days are UTC, by Redis' clock."),
    ] = None,
    group_by: Annotated[
        str,
        AfterValidator(_known_columns),
        Query(
            json_schema_extra={"pattern": f"^{_GROUP}(,{_GROUP})*$"},
            description="Columns of the rows, with commas between them: `day`, `tenant`, `key`, `model`, `adapter`.",
        ),
    ] = "day",
    tenant: Annotated[
        str | None,
        Query(
            pattern=f"^{TENANT.pattern}$",
            description="Only this tenant's usage; another tenant's needs the role `admin`.",
        ),
    ] = None,
    format: Annotated[  # as the URL names it
        Literal["json", "csv"] | None, Query(description="Default: by the header `Accept`, else `json`.")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Return images, megapixel-steps and GPU seconds of the caller's tenant; with the role `admin`, of all tenants.

    An attempt counts on the day on which it ends. Attempts without an image are stated apart, and cost nothing.
    """
    read = partial(
        _report,
        services,
        first,
        last,
        columns=[cast(Group, name) for name in group_by.split(",")],
        tenant=listed_tenant(caller, tenant),
    )
    as_csv = format == "csv" or (format is None and _prefers_csv(accept))
    # Waits on the event loop: reports that wait for their turn must not take the threads that answer polls.
    return await to_thread.run_sync(partial(_answer, read, as_csv=as_csv), limiter=services.listing_limiter)


def _answer(read: Callable[[], UsageReport], *, as_csv: bool) -> Response:
    """Read a report and write it; 100,000 rows take seconds, for which the event loop must not wait."""
    report = read()
    if as_csv:
        name = f"usage-{report.first_day}-{report.last_day}.csv"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(write_csv(report), media_type=_CSV, headers=disposition)
    return Response(report.model_dump_json(), media_type="application/json")


def _report(
    services: Services, first: date | None, last: date | None, *, columns: list[Group], tenant: str | None
) -> UsageReport:
    usage = services.ledger.usage
    last = last or usage.today()
    first = first or last.replace(day=1)
    if first > last:
        raise InvalidRequest(
            f"the first day, {first}, is after the last one, {last}; choose an earlier from or a later to", field="from"
        )
    if last - first >= timedelta(days=_MOST_DAYS):
        raise InvalidRequest(f"{first} to {last} are more than {_MOST_DAYS} days; ask for fewer", field="from")
    rows = usage.rows(first, last, tenant=tenant)
    return report_usage(rows, first=first, last=last, group_by=columns, prices=services.settings.price)


def _prefers_csv(accept: str) -> bool:
    """Return whether a header `Accept` ranks CSV above JSON."""
    quality = {"": 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (text.strip() for text in part.split(";"))
        weights = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
        try:
            quality[name] = float(weights[0]) if weights else 1.0
        except ValueError:
            quality[name] = 0.0
    anything = quality.get("*/*", 0.0)
    json = quality.get("application/json", quality.get("application/*", anything))
    return quality.get(_CSV, quality.get("text/*", anything)) > json
