"""What workers and API processes counted by themselves and sent to the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from shared.ledger import Ledger
from shared.metrics.definitions import COUNTERS, HISTOGRAMS, Counter, Histogram
from shared.metrics.tally import bound_text

_MILLION: Final = 1_000_000

#: The sums of one metric, by the values of its labels; a histogram has one more, which names the part.
_Sums = Mapping[tuple[str, ...], int]


def collect_reported(ledger: Ledger) -> Iterator[Metric]:
    """Yield a counter or a histogram for each metric of `shared.metrics.definitions`."""
    by_metric: dict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
    # A metric that only a later version knows is left out.
    for field, count in ledger.metrics.read().items():
        name, *labels = field.split("|")
        by_metric[name][tuple(labels)] = count
    for counter in COUNTERS:
        yield _counter(counter, by_metric[counter.name])
    for histogram in HISTOGRAMS:
        yield _histogram(histogram, by_metric[histogram.name])


def _counter(counter: Counter, sums: _Sums) -> Metric:
    family = CounterMetricFamily(f"flux2_{counter.name}", counter.text, labels=counter.labels)
    present = [(value,) for value in counter.known] if counter.labels else [()]
    for labels, count in {**dict.fromkeys(present, 0), **sums}.items():
        family.add_metric(labels, count)
    return family


def _histogram(histogram: Histogram, sums: _Sums) -> Metric:
    family = HistogramMetricFamily(f"flux2_{histogram.name}", histogram.text, labels=histogram.labels)
    parts: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for (*labels, part), count in sums.items():
        parts[tuple(labels)][part] = count
    for series, counts in parts.items():
        total = counts.pop("sum", 0) / _MILLION
        family.add_metric(series, _cumulative(histogram, counts), sum_value=total)
    return family


def _cumulative(histogram: Histogram, counts: Mapping[str, int]) -> list[tuple[str, float]]:
    """Return how many values were at most each bound.

    Args:
        counts: values by the text of their bucket, whose bound another version may have chosen.
    """
    upper = {part.removeprefix("le="): count for part, count in counts.items()}
    finite = [(int(text), count) for text, count in upper.items() if text != "inf"]
    rows: list[tuple[str, float]] = []
    for bound in histogram.bounds:
        limit = int(bound_text(bound))
        rows.append((str(bound), sum(count for known, count in finite if known <= limit)))
    return [*rows, ("+Inf", sum(upper.values()))]
