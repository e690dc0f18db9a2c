"""What attempts used, by tenant and model."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from shared.ledger import Ledger


def collect_usage(ledger: Ledger) -> Iterator[Metric]:
    """Yield the counters of images, megapixel-steps and GPU seconds."""
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
    for names, usage in ledger.usage.totals().items():
        images.add_metric(names, usage.images)
        steps.add_metric(names, usage.pixel_steps / 1e6)
        gpu_s.add_metric(names, usage.gpu_ms / 1000)
        wasted_s.add_metric(names, usage.wasted_gpu_ms / 1000)
    yield from (images, steps, gpu_s, wasted_s)
