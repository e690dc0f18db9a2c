"""Measure for how long the attempt at an item occupies its devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class DeviceTime:
    """A stopwatch: the rendering thread starts and stops it, and any thread may read it.

    It runs from the first stage of a render to the last one, adapter swaps included, also while the process is frozen.
    Downloads, waits for Redis, and everything after the render (encoding the file, its upload) do not count.

    Args:
        devices: number of devices that the attempt occupies; each counts.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, devices: int = 1) -> None:
        self._clock = clock
        self._devices = devices
        # Guards the two below.
        self._lock = threading.Lock()
        self._total_s = 0.0
        self._started_at: float | None = None

    def start(self) -> None:
        """Go on; nothing changes if it runs already."""
        with self._lock:
            if self._started_at is None:
                self._started_at = self._clock()

    def stop(self) -> None:
        """Stop; nothing changes if it does not run."""
        with self._lock:
            if self._started_at is not None:
                self._total_s += self._clock() - self._started_at
                self._started_at = None

    @property
    def seconds(self) -> float:
        """Seconds for which it has run so far, of all devices together."""
        with self._lock:
            running_s = 0.0 if self._started_at is None else self._clock() - self._started_at
            return (self._total_s + running_s) * self._devices
