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
    counts = Counter[tuple[str, str]]()
    for kind, count in ledger.slot_kinds.count().items():
        counts[kind.model, kind.state] += count
    for labels, count in counts.items():
        alive.add_metric(labels, count)
    yield alive


def collect_each_slot(ledger: Ledger, *, most_slots: int) -> Iterator[Metric]:
    """Yield what each slot reports of itself; in a fleet larger than `most_slots`, only what is wrong with some.

    Otherwise a large fleet has too many series.
    """
    is_small = ledger.slots.count() <= most_slots
    slots = ledger.workers.live_slots() if is_small else []
    # The metric keeps its name for existing dashboards; it counts corrupted parameters.
    corrupted = _gauge(
        "base_drift",
        "Base parameters that were not bit-identical to the checkpoint after an adapter was removed; must be 0.",
    )
    used = _gauge(
        "slot_gpu_memory_used_bytes",
        "Memory of a GPU that is in use, by all processes; of a slot with several GPUs, that of the first.",
    )
    size = _gauge("slot_gpu_memory_bytes", "Memory of a GPU; of a slot with several GPUs, that of the first.")
    works = _gauge(
        "slot_gpu_utilization_ratio",
        "Part of the last second or so in which a GPU ran a kernel; from the driver's `libnvidia-ml.so.1`, "
        "and absent without it.",
    )
    for slot in slots if is_small else ledger.workers.unhealthy_slots():
        corrupted.add_metric([slot.name], slot.corrupted)
    for slot in slots:
        if slot.gpu_memory_used_bytes is not None:
            used.add_metric([slot.name], slot.gpu_memory_used_bytes)
            size.add_metric([slot.name], slot.memory_bytes)
        if slot.gpu_utilization is not None:
            works.add_metric([slot.name], slot.gpu_utilization)
    yield from (corrupted, used, size, works)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flux2_{name}", text, labels=["slot"])
