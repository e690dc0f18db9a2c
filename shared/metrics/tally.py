"""Count in a process what the ledger adds up for the whole fleet."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Mapping
from typing import Final

from shared.metrics.definitions import Counter, Histogram

_INFINITE: Final = "inf"
_MILLION: Final = 1_000_000


class Tally:
    """The counts of a process since they were last taken, as whole numbers by field; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts[str]()

    def count(self, counter: Counter, *labels: str, by: int = 1) -> None:
        """Add to a counter; `labels` are the values of its labels, in order."""
        field = _field(counter, labels)
        with self._lock:
            self._counts[field] += by

    def observe(self, histogram: Histogram, value: float, *labels: str, times: int = 1) -> None:
        """Add a value, 0 or more, to a histogram, as often as it occurred."""
        field, position = _field(histogram, labels), bisect_left(histogram.bounds, value)
        bound = bound_text(histogram.bounds[position]) if position < len(histogram.bounds) else _INFINITE
        with self._lock:
            self._counts[f"{field}|le={bound}"] += times
            self._counts[f"{field}|sum"] += round(value * times * _MILLION)

    def take(self) -> Mapping[str, int]:
        """Return the counts and begin again with none."""
        with self._lock:
            taken, self._counts = self._counts, Counts[str]()
        return {field: count for field, count in taken.items() if count}


def bound_text(bound: float) -> str:
    """Return the bound of a bucket as fields have it, in millionths."""
    return str(round(bound * _MILLION))


def _field(metric: Counter | Histogram, labels: tuple[str, ...]) -> str:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}, and not {len(labels)} values")
    return "|".join([metric.name, *labels])


#: The tally of this process. All of its parts share it, as they share a log: whatever fails or takes time is counted
#: where it happens, however deep that is.
PROCESS: Final = Tally()
