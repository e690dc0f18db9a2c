"""GET /metrics: figures about queue and workers for Prometheus, read from the ledger at each scrape."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.deps import ServicesDep
from api.doors.roles import MetricsReader
from api.metrics.collector import LedgerCollector

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": {"type": "string"}}}}},
)
def metrics(services: ServicesDep, _caller: MetricsReader) -> Response:
    """Return queue lengths, live workers, corrupted base parameters and what was used, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(services.ledger, most_slots=services.settings.api.metrics_slots))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
