"""Recovery times, computed from a run's history."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from chaos.history import Event

# Recovery times that fall within this slack around a Redis outage measure Redis, not the ledger.
_AROUND_S = 1.0


def kill_to_start(events: Sequence[Event], *, ttl_s: float) -> list[float]:
    """Seconds from each kill that hit a running item to the item's next start, outside Redis outages."""
    running: dict[str, str] = {}
    open_since: dict[str, float] = {}
    times: list[tuple[float, float]] = []
    for event in events:
        match event["kind"]:
            case "claim":
                if (since := open_since.pop(event["item"], None)) is not None:
                    times.append((since, float(event["t"])))
                running[event["slot"]] = event["item"]
            case "commit":
                running = {slot: item for slot, item in running.items() if item != event["item"]}
                open_since.pop(event["item"], None)
            case "kill":
                if (item := running.pop(event["target"], None)) is not None:
                    open_since[item] = float(event["t"])
    outages = _outages(events, ttl_s)
    return [end - start for start, end in times if not any(start < up and end > down for down, up in outages)]


def redis_to_start(events: Sequence[Event]) -> list[float]:
    """Seconds from each return of Redis to the next start of an item."""
    ups = [float(event["t"]) for event in events if event["kind"] == "redis up"]
    starts = [float(event["t"]) for event in events if event["kind"] == "claim"]
    return [next(start for start in starts if start > up) - up for up in ups if starts and starts[-1] > up]


def _outages(events: Sequence[Event], ttl_s: float) -> list[tuple[float, float]]:
    """Spans in which Redis was away, or leases had their time of grace."""
    downs = [float(event["t"]) for event in events if event["kind"] == "redis down"]
    ups = [float(event["t"]) for event in events if event["kind"] == "redis up"]
    return [(down - _AROUND_S, up + ttl_s + _AROUND_S) for down, up in zip(downs, ups, strict=False)]


def p50(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3) if values else 0.0


def p99(values: Sequence[float]) -> float:
    if len(values) < 2:
        return round(values[0], 3) if values else 0.0
    return round(statistics.quantiles(values, n=100, method="inclusive")[98], 3)
