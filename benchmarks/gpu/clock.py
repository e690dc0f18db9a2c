"""Measure time on the device: with events on a GPU, where calls return before their work is done, else with a clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

# A GPU lowers its clock under load. Without a warm-up only the first engine would run on a cool GPU.
_WARM_UP_S = 3.0
# A pass longer than this times the median has waited for something other than its own work.
_WAITED = 1.2


class Clock:
    """Marks moments in the device's work and measures the milliseconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"

    @property
    def name(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self._cuda else str(self.device)

    def mark(self) -> Any:
        """Mark the moment when the device finishes all work submitted so far."""
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Block until the device is idle."""
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Return the milliseconds from each mark to the next; blocks until the device reaches the last mark."""
        if self._cuda:
            marks[-1].synchronize()
            return [start.elapsed_time(end) for start, end in pairwise(marks)]
        return [(end - start) * 1000 for start, end in pairwise(marks)]

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the seconds from a call until the device is idle, on the caller's clock."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def median_s(self, call: Callable[[], object], repeat: int) -> float:
        """Return the median seconds of `repeat` calls, after one call to warm up."""
        call()
        return statistics.median(self.seconds(call) for _ in range(repeat))

    def warm_up(self, call: Callable[[], object]) -> None:
        """Repeat a call on a GPU until its clock has settled; does nothing on a CPU."""
        until = time.perf_counter() + _WARM_UP_S
        while self._cuda and time.perf_counter() < until:
            self.seconds(call)

    def reset_peak(self) -> None:
        """Start a new measurement of peak memory."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float | None:
        """Return the peak memory of tensors since `reset_peak` in GB; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self._cuda else None

    @contextmanager
    def busy(self, *modules: nn.Module) -> Iterator[Callable[[], float]]:
        """Yield a function that returns the seconds the device has spent inside these modules.

        A pass that took more than 1.2 times its module's median has waited for something, and counts as the median.
        """
        spans: list[list[list[Any]]] = []
        handles = []
        for module in modules:
            mine: list[list[Any]] = []
            spans.append(mine)
            handles.append(module.register_forward_pre_hook(lambda *_, mine=mine: mine.append([self.mark()])))
            handles.append(module.register_forward_hook(lambda *_, mine=mine: mine[-1].append(self.mark())))

        def busy_s() -> float:
            total_ms = 0.0
            for mine in spans:
                times = [time_ms for span in mine for time_ms in self.between(span)]
                usual = statistics.median(times)
                total_ms += sum(time_ms if time_ms < _WAITED * usual else usual for time_ms in times)
            return total_ms / 1000

        try:
            yield busy_s
        finally:
            for handle in handles:
                handle.remove()
