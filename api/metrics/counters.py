"""What the ledger counted since its first start, in the steps in which it happened."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from shared.ledger import Ledger


def collect_counters(ledger: Ledger) -> Iterator[Metric]:
    """Yield one counter for each kind of event."""
    late = CounterMetricFamily(
        "flux2_items_deadline_exceeded", "Images that were canceled because `deadline_s` of their job had passed."
    )
    late.add_metric([], ledger.deadlines_exceeded())
    yield late
