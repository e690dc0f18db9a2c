"""The live workers, and in a small fleet each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from shared.ledger import Ledger


def collect_slots(ledger: Ledger) -> Iterator[Metric]:
    """Yield `flux2_slots`."""
    alive = GaugeMetricFamily("flux2_slots", "Live workers.", labels=["model", "state"])
    for (model, state), count in Counter((slot.model, slot.state) for slot in ledger.workers.live_slots()).items():
        alive.add_metric([model, state], count)
    yield alive


def collect_each_slot(ledger: Ledger, *, most_slots: int) -> Iterator[Metric]:
    """Yield what each slot reports of itself, unless the fleet is larger than `most_slots`: it has too many series."""
    slots = ledger.workers.live_slots() if ledger.workers.count_live() <= most_slots else []
    # The metric keeps its name for existing dashboards; it counts corrupted parameters.
    corrupted = _gauge(
        "base_drift", "Base parameters that differ from the checkpoint after an adapter swap; must be 0."
    )
    used = _gauge("slot_gpu_memory_used_bytes", "Memory of a GPU that is in use, by all processes.")
    size = _gauge("slot_gpu_memory_bytes", "Memory of a GPU.")
    works = _gauge("slot_gpu_utilization_ratio", "Part of the last second or so in which a GPU ran a kernel.")
    for slot in slots:
        corrupted.add_metric([slot.name], slot.corrupted)
        if slot.gpu_memory_used_bytes is not None:
            used.add_metric([slot.name], slot.gpu_memory_used_bytes)
            size.add_metric([slot.name], slot.memory_bytes)
        if slot.gpu_utilization is not None:
            works.add_metric([slot.name], slot.gpu_utilization)
    yield from (corrupted, used, size, works)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flux2_{name}", text, labels=["slot"])
