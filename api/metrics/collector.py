"""All figures of one scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric

from api.metrics.counters import collect_counters
from api.metrics.items import collect_items
from api.metrics.reported import collect_reported
from api.metrics.slots import collect_each_slot, collect_slots
from api.metrics.usage import collect_usage
from shared.ledger import Ledger


class LedgerCollector:
    """Reads the figures when they are scraped.

    Every API process gives the same figures, since the ledger is shared: scrape one, or take the maximum.

    Args:
        most_slots: see `ApiSettings.metrics_slots`.
    """

    def __init__(self, ledger: Ledger, *, most_slots: int) -> None:
        self._ledger = ledger
        self._most_slots = most_slots

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        for collect in (collect_items, collect_counters, collect_reported, collect_slots, collect_usage):
            yield from collect(self._ledger)
        yield from collect_each_slot(self._ledger, most_slots=self._most_slots)
