"""The live workers and the corrupted parameters that they found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from shared.ledger import Ledger


def collect_slots(ledger: Ledger) -> Iterator[Metric]:
    """Yield `flux2_slots` and `flux2_base_drift`."""
    slots = ledger.workers.live_slots()
    alive = GaugeMetricFamily("flux2_slots", "Live workers.", labels=["model", "state"])
    for (model, state), count in Counter((slot.model, slot.state) for slot in slots).items():
        alive.add_metric([model, state], count)
    # The metric keeps its name for existing dashboards; it counts corrupted parameters.
    corrupted = GaugeMetricFamily(
        "flux2_base_drift",
        "Base parameters that differ from the checkpoint after an adapter swap; must be 0.",
        labels=["slot"],
    )
    for slot in slots:
        corrupted.add_metric([slot.name], slot.corrupted)
    yield from (alive, corrupted)
