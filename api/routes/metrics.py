"""GET /metrics: figures about queue and workers for Prometheus, read from the ledger at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.deps import ServicesDep
from api.doors.roles import MetricsReader
from shared.catalog import MODELS
from shared.job import ENGINES, FEATURES, pools
from shared.ledger import Ledger

router = APIRouter(tags=["metrics"])


class _LedgerCollector:
    """Reads the figures when they are scraped.

    Every API process gives the same figures, since the ledger is shared: scrape one, or take the maximum.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("flux2_items_queued", "Images that wait for a worker.", labels=["model", "engine"])
        for model, engine in product(MODELS, ENGINES):
            waiting = sum(self._ledger.queue_length(name) for name in pools(model, [engine], FEATURES))
            queued.add_metric([model, engine], waiting)
        yield queued
        late = CounterMetricFamily(
            "flux2_items_deadline_exceeded", "Images that were canceled because `deadline_s` of their job had passed."
        )
        late.add_metric([], self._ledger.deadlines_exceeded())
        yield late
        slots = self._ledger.workers.live_slots()
        alive = GaugeMetricFamily("flux2_slots", "Live workers.", labels=["model", "state"])
        for (model, state), count in Counter((slot.model, slot.state) for slot in slots).items():
            alive.add_metric([model, state], count)
        yield alive
        # The metric keeps its name for existing dashboards; it counts corrupted parameters.
        corrupted = GaugeMetricFamily(
            "flux2_base_drift",
            "Base parameters that differ from the checkpoint after an adapter swap; must be 0.",
            labels=["slot"],
        )
        for slot in slots:
            corrupted.add_metric([slot.name], slot.corrupted)
        yield corrupted
        yield from self._collect_usage()

    def _collect_usage(self) -> Iterator[CounterMetricFamily]:
        labels = ["tenant", "model"]
        images = CounterMetricFamily("flux2_images", "Images that were finished.", labels=labels)
        steps = CounterMetricFamily(
            "flux2_megapixel_steps",
            "Width times height times steps of finished images, divided by 1,000,000.",
            labels=labels,
        )
        gpu_s = CounterMetricFamily("flux2_gpu_seconds", "GPU time of attempts that gave an image.", labels=labels)
        wasted_s = CounterMetricFamily(
            "flux2_wasted_gpu_seconds", "GPU time of attempts that ended without an image.", labels=labels
        )
        for names, usage in self._ledger.usage.totals().items():
            images.add_metric(names, usage.images)
            steps.add_metric(names, usage.pixel_steps / 1e6)
            gpu_s.add_metric(names, usage.gpu_ms / 1000)
            wasted_s.add_metric(names, usage.wasted_gpu_ms / 1000)
        yield from (images, steps, gpu_s, wasted_s)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": {"type": "string"}}}}},
)
def metrics(services: ServicesDep, _caller: MetricsReader) -> Response:
    """Return queue lengths, live workers, corrupted base parameters and what was used, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_LedgerCollector(services.ledger))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
