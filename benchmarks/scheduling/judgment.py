"""The figures and bars that all scenarios share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.simulation import Simulation


def judge(name: str, simulation: Simulation, figures: Mapping[str, float], bars: Sequence[Bar]) -> Outcome:
    """Add to a scenario's own figures and bars those of every run: each item ended once, and each claim states why."""
    items = simulation.history.items
    reasons = simulation.ledger.totals().claims
    starts = sum(item.starts for item in items)
    waits_s = simulation.history.waits_s()
    return Outcome(
        name,
        {
            "items": len(items),
            "swaps": simulation.history.swaps,
            "median wait s": percentile(waits_s, 50),
            "p99 wait s": percentile(waits_s, 99),
            "longest wait s": max(waits_s),
            "end s": simulation.history.end_s,
            **{f"claims {reason}": count for reason, count in reasons.items()},
            **figures,
        },
        [
            *bars,
            Bar("items that did not end exactly once", sum(item.commits != 1 for item in items), at_most=0),
            Bar("claims whose reason was not counted", abs(starts - sum(reasons.values())), at_most=0),
        ],
    )
