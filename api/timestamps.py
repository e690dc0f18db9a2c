"""Format times for the wire: RFC 3339 in UTC with milliseconds and Z, e.g. `2026-01-01T12:00:00.000Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def format_time(moment: datetime) -> str:
    """Format an aware time in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_ms(ms: int) -> str:
    """Format a time of the ledger, in milliseconds since the epoch."""
    return format_time(datetime.fromtimestamp(ms / 1000, UTC))


def format_ms_or_none(ms: int | None) -> str | None:
    return None if ms is None else format_ms(ms)
