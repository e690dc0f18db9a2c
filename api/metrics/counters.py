"""What the ledger counted since its first start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from shared.ledger import Ledger

_Name = TypeVar("_Name", bound=str)


def collect_counters(ledger: Ledger) -> Iterator[Metric]:
    """Yield the counters of claims, lost leases, releases, ends and webhooks, and what waits outside of the queue."""
    totals = ledger.totals()
    late = "Images that were canceled because `deadline_s` of their job had passed."
    yield CounterMetricFamily("flux2_items_deadline_exceeded", late, value=totals.deadline_exceeded)
    yield _counter(
        "flux2_claims",
        "Images that a worker claimed: `overdue` (past the wait bound), `priority`, `share` (the tenant's "
        "turn), `warm` (its adapters were merged), `cold`.",
        "reason",
        totals.claims,
    )
    yield _counter(
        "flux2_lost_leases",
        "Attempts that ended without their worker: the lease `expired`, or the worker started again and `reclaimed`.",
        "reason",
        totals.lost_leases,
    )
    handed_back = (
        "Attempts that a worker handed back: `drain`, `outage` of the storage, `retry`, `later` (only time "
        "helps), `memory` (too large for the device)."
    )
    yield _counter("flux2_releases", handed_back, "reason", totals.releases)
    yield _counter(
        "flux2_items_unsuccessful",
        "Images that ended `failed` or `canceled`; those that succeeded are `flux2_images_total`.",
        "state",
        totals.items,
    )
    yield _counter(
        "flux2_webhooks", "Webhooks that are not sent any more: `delivered` or `failed`.", "outcome", totals.webhooks
    )
    undelivered = ledger.outbox.count_undelivered()
    yield GaugeMetricFamily("flux2_webhooks_waiting", "Webhooks that are to be delivered.", value=undelivered)
    outage = "1 if a worker could not reach the storage in the last five minutes, else 0."
    yield GaugeMetricFamily("flux2_storage_outage", outage, value=ledger.workers.storage_outage_reported())


def _counter(name: str, text: str, label: str, counts: Mapping[_Name, int]) -> Metric:
    counter = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        counter.add_metric([value], count)
    return counter
