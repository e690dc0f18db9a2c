"""Sum up what was used by groups, and put prices on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Context, Decimal
from typing import Any, Final

from api.schemas.usage import Group, UsageAmounts, UsageLine, UsageReport
from shared.ledger.usage_rows import Usage, UsageRow
from shared.settings import PriceSettings
from shared.spreadsheet_cell import harmless_cell

#: Columns in the order in which every report has them.
GROUPS: Final[tuple[Group, ...]] = ("day", "tenant", "key", "model", "adapter")
NO_KEY: Final = "none"

_AMOUNTS: Final = ("images", "megapixel_steps", "gpu_s", "wasted_gpu_s")
_SMALLEST: Final = Decimal("0.000001")
# The default of 28 digits refuses an absurd price times a year of a fleet.
_MONEY: Final = Context(prec=60)


def report_usage(
    rows: Iterable[UsageRow], *, first: date, last: date, group_by: Sequence[Group], prices: PriceSettings
) -> UsageReport:
    """Sum up rows by the columns in `group_by`."""
    columns = [name for name in GROUPS if name in group_by]
    sums: dict[tuple[Any, ...], Usage] = {}
    for row in rows:
        group = tuple(_cell(row, name) for name in columns)
        sums[group] = sums.get(group, Usage()) + row.usage
    lines = [
        UsageLine(**dict(zip(columns, group, strict=True)), **_amounts(usage, prices))
        for group, usage in sorted(sums.items())
    ]
    total = _amounts(sum(sums.values(), Usage()), prices)
    if prices.is_set:
        # An invoice must add up: rows are rounded, and so is their sum.
        total["cost"] = _text(sum((Decimal(line.cost or 0) for line in lines), Decimal(0)))
    return UsageReport(
        first_day=first,
        last_day=last,
        group_by=columns,
        currency=prices.currency if prices.is_set else None,
        data=lines,
        total=UsageAmounts(**total),
    )


def write_csv(report: UsageReport) -> str:
    """Return the rows of a report as CSV (RFC 4180) with a header."""
    columns = [*report.group_by, *_AMOUNTS, *(["cost", "currency"] if report.currency else [])]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    for line in report.data:
        values = {**line.model_dump(mode="json"), "currency": report.currency}
        writer.writerow([harmless_cell(str(values[name])) for name in columns])
    return file.getvalue()


def _cell(row: UsageRow, column: Group) -> str | date:
    values: dict[Group, str | date] = {
        "day": row.day,
        "tenant": row.tenant,
        "key": row.key_id or NO_KEY,
        "model": row.model,
        "adapter": row.adapters,
    }
    return values[column]


def _amounts(usage: Usage, prices: PriceSettings) -> dict[str, Any]:
    amounts = {
        "images": usage.images,
        "megapixel_steps": usage.pixel_steps / 1e6,
        "gpu_s": usage.gpu_ms / 1000,
        "wasted_gpu_s": usage.wasted_gpu_ms / 1000,
    }
    return amounts | ({"cost": price_of(usage, prices)} if prices.is_set else {})


def price_of(usage: Usage, prices: PriceSettings) -> str:
    """Return the price of what was used, as a decimal number."""
    by_time = (prices.gpu_hour or 0) * Decimal(usage.gpu_ms) / 3_600_000
    by_image = (prices.image or 0) * Decimal(usage.images)
    by_step = (prices.megapixel_step or 0) * Decimal(usage.pixel_steps) / 1_000_000
    return _text(by_time + by_image + by_step)


def _text(amount: Decimal) -> str:
    return f"{_MONEY.quantize(amount, _SMALLEST):f}"
