"""Sees a worker that has stopped listening: idle, with wake-ups waiting that it does not take.

Celery on Redis has had several defects of this kind after a reconnection (celery#8030, #9054, PR#10346). Nothing else
would notice one, since such a process still sends heartbeats.
"""

from __future__ import annotations

import logging
import threading
import time

from shared.errors import LedgerUnavailable
from worker.consumer import device_faults
from worker.consumer.item_run import Worker

logger = logging.getLogger("flux2.worker.watch")

_LOOK_S = 3.0
# A listening worker takes a wake-up within milliseconds; after a reconnection within some 15 s.
_DEAF_S = 45.0


class Watch(threading.Thread):
    """Ends the process, to be started again, when it has been deaf for `deaf_s`."""

    def __init__(self, worker: Worker, *, deaf_s: float = _DEAF_S, look_s: float = _LOOK_S) -> None:
        super().__init__(name="flux2-watch", daemon=True)
        self._worker = worker
        self._deaf_s = deaf_s
        self._look_s = look_s
        self._stopped = threading.Event()
        self._heard_at = time.monotonic()
        self._wakes = 0

    def run(self) -> None:
        while not self._stopped.wait(self._look_s):
            if self._hears():
                self._heard_at = time.monotonic()
            elif time.monotonic() - self._heard_at > self._deaf_s:
                logger.critical("this process takes no wake-ups any more", extra={"deaf_s": self._deaf_s})
                self._worker.end(device_faults.EXIT_FAULT)

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()

    def _hears(self) -> bool:
        """Whether nothing speaks against it: a wake-up came since the last look, or there is none, or work goes on."""
        slot, before = self._worker.slot, self._wakes
        self._wakes = slot.wakes
        if slot.wakes != before or slot.answering or slot.claims or slot.draining.is_set():
            return True
        try:
            return not any(self._worker.ledger.wakeups.count(pool) for pool in slot.pools)
        except LedgerUnavailable:
            return True
