"""GET /metrics: the fleet as Prometheus sees it, read from the ledger at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.deps import ServicesDep
from shared.catalog import MODELS
from shared.job import ENGINES, pool
from shared.ledger import Ledger

router = APIRouter(tags=["metrics"])


class _Fleet:
    """Collects at scrape time; every API process tells the same, since the ledger is shared."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[GaugeMetricFamily]:
        queued = GaugeMetricFamily("flux2_items_queued", "Items waiting for a worker.", labels=["model", "engine"])
        for model, engine in product(MODELS, ENGINES):
            queued.add_metric([model, engine], self._ledger.queue_length(pool(model, engine)))
        yield queued
        slots = self._ledger.workers.live_slots()
        alive = GaugeMetricFamily("flux2_slots", "Live workers.", labels=["model", "state"])
        for (model, state), count in Counter((slot.model, slot.state) for slot in slots).items():
            alive.add_metric([model, state], count)
        yield alive
        drift = GaugeMetricFamily(
            "flux2_base_drift", "Restored parameters that differ from the checkpoint; must be 0.", labels=["slot"]
        )
        for slot in slots:
            drift.add_metric([slot.name], slot.corrupted)
        yield drift


@router.get("/metrics", response_class=Response)
def metrics(services: ServicesDep) -> Response:
    """Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fleet(services.ledger))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
