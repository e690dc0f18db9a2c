"""End a worker that no longer receives wake-ups, so that its supervisor starts it again.

Celery on Redis has had several such defects after a reconnection (celery#8030, #9054, PR#10346). Nothing else notices
one, because such a process still sends heartbeats.
"""

from __future__ import annotations

import threading
import time

from shared.errors import LedgerUnavailable
from worker.consumer.process_end import EXIT_FAULT, end_process
from worker.consumer.worker import Worker

_POLL_S = 3.0
# A healthy worker receives a wake-up within milliseconds; after a reconnection, within about 15 s.
_DEAF_S = 45.0


class Watchdog(threading.Thread):
    """Ends the process once it has been idle for `deaf_s` seconds while wake-ups waited in Redis."""

    def __init__(self, worker: Worker, *, deaf_s: float = _DEAF_S, poll_s: float = _POLL_S) -> None:
        super().__init__(name="flux2-watchdog", daemon=True)
        self._worker = worker
        self._deaf_s = deaf_s
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._healthy_at = time.monotonic()
        self._wakeups = 0

    def run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            if self._check_health():
                self._healthy_at = time.monotonic()
            elif time.monotonic() - self._healthy_at > self._deaf_s:
                end_process(self._worker, EXIT_FAULT, reason=f"no wake-up received for {self._deaf_s:g} s")

    def stop(self) -> None:
        """End the thread and join it."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def _check_health(self) -> bool:
        """Return whether the worker is busy, received a wake-up since the last call, or has none waiting in Redis."""
        now, before = self._worker.state.snapshot(), self._wakeups
        self._wakeups = now.wakeups
        if now.wakeups != before or now.answering or now.claims or now.draining:
            return True
        ledger = self._worker.ledger
        try:
            if not ledger.wakeups.any_waiting(self._worker.slot.wake_names):
                return True
            ledger.check_writable()
        except LedgerUnavailable:
            # Without Redis, or from a replica, nobody receives wake-ups, and a restart would not help.
            return True
        return False
