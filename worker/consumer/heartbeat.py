"""Report to the ledger that this worker is alive, with its state, its merged adapters and what it counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from shared.errors import LedgerUnavailable, ServerFailed
from shared.ledger import Ledger
from shared.metrics.batches import Batches
from shared.metrics.tally import PROCESS, Tally
from worker.consumer.slot import Slot
from worker.consumer.slot_health import HealthFile
from worker.consumer.worker_state import WorkerState

logger = logging.getLogger("flux2.worker.consumer.heartbeat")

# The ledger forgets a slot after 15 s without a heartbeat, so several may be lost.
_INTERVAL_S = 3.0
# Longer than a call to Redis takes to time out.
_WITHDRAW_S = 10.0
# Each batch of counts is a write to Redis' disk, and an item changes the state several times.
_COUNTS_S = 15.0
# In a larger fleet, as much less often: 10,000 slots then take 3 % of a core of Redis for them instead of 13 %.
_FREQUENT_SLOTS = 1000
_LONGEST_COUNTS_S = 60.0
_NO_FIELDS: Final[Mapping[str, str]] = MappingProxyType({})


class _HasWarmKey(Protocol):
    """The part of `ItemRenderer` that a heartbeat needs."""

    @property
    def warm_key(self) -> str: ...


class Heartbeat:
    """Sends the worker's state to the ledger every few seconds, and whenever the state announces a change.

    Args:
        renderer: provides the key of the adapters that are merged now, at each heartbeat.
        health_dir: folder for the slot's file of `slot_health`; None writes none.
        withdraw_s: how long `withdraw` waits for a heartbeat that is being sent.
        tally: the counts that heartbeats carry.
        counts_s: seconds between two heartbeats that carry counts, in a fleet of at most 1,000 slots.
        device_report: returns fields about the device at each heartbeat; it must not wait for the device.

    Raises:
        ServerFailed: `health_dir` cannot be created.
    """

    def __init__(
        self,
        ledger: Ledger,
        slot: Slot,
        state: WorkerState,
        renderer: _HasWarmKey,
        *,
        health_dir: Path | None = None,
        withdraw_s: float = _WITHDRAW_S,
        tally: Tally = PROCESS,
        counts_s: float = _COUNTS_S,
        device_report: Callable[[], Mapping[str, str]] = lambda: _NO_FIELDS,
    ) -> None:
        self._ledger = ledger
        self._slot = slot
        self._state = state
        self._renderer = renderer
        self._health = _open_health(health_dir, slot.name)
        self._withdraw_s = withdraw_s
        self._device_report = device_report
        self._facts = {
            "model": slot.model,
            "device": slot.device,
            "revision": slot.revision,
            "precision": slot.precision,
            "engines": ",".join(slot.engines),
            "features": ",".join(slot.features),
            "memory_bytes": str(slot.memory_bytes),
        }
        # Guards the batches too.
        self._sending = threading.Lock()
        self._batches = Batches(tally)
        self._counts_s = counts_s
        self._counts_due_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send_until_stopped, name="flux2-heartbeat", daemon=True)
        self._started = False
        state.on_change(self.send)

    def start(self) -> None:
        """Announce the slot and keep announcing it; safe to repeat. Only the main thread calls this."""
        if not self._started:
            self._started = True
            self.send()
            self._thread.start()

    def stop(self) -> None:
        """Remove the slot from the list of live ones and join the thread."""
        try:
            self.withdraw()
        except LedgerUnavailable as error:
            logger.warning("slot not removed from the live ones", extra={"slot": self._slot.name, "error": str(error)})
        if self._thread.is_alive():
            self._thread.join()

    def withdraw(self) -> None:
        """Remove the slot from the list of live ones and send nothing more; any thread may call this.

        Raises:
            LedgerUnavailable: Redis did not answer; the slot is forgotten when its last heartbeat expires.
        """
        self._stopped.set()
        # A heartbeat that is being sent would add the slot again. One that hangs must not keep the process from ending.
        locked = self._sending.acquire(timeout=self._withdraw_s)
        try:
            # The last counts: a heartbeat that hangs may be sending the batch before them.
            batch = self._batches.next() if locked else None
            self._ledger.workers.remove(self._slot.name, batch=batch)
            if locked:
                self._batches.confirm(batch)
                # What was counted after a batch whose answer had been lost.
                if (rest := self._batches.next()) is not None:
                    self._ledger.workers.remove(self._slot.name, batch=rest)
        finally:
            if self._health is not None:
                self._health.remove()
            if locked:
                self._sending.release()

    def send(self) -> None:
        """Send the state as it is now; if Redis does not answer, log a warning."""
        with self._sending:  # otherwise an older report could arrive last
            if self._stopped.is_set():
                return
            snapshot = self._state.snapshot()
            report = {**self._facts, **self._device_report(), **snapshot.report(merged_key=self._renderer.warm_key)}
            is_confirmed = False
            batch = self._batches.next() if time.monotonic() >= self._counts_due_at else None
            try:
                slots = self._ledger.workers.beat(self._slot.name, report, batch=batch)
                is_confirmed = True
                if batch is not None:
                    self._batches.confirm(batch)
                    self._counts_due_at = time.monotonic() + self._counts_pause_s(slots)
            except LedgerUnavailable as error:
                logger.warning("heartbeat not sent", extra={"slot": self._slot.name, "error": str(error)})
            self._write_health(report["state"], is_confirmed)

    def _counts_pause_s(self, slots: int) -> float:
        """Return the seconds until the next heartbeat with counts, in a fleet of this size."""
        return max(self._counts_s, min(self._counts_s * slots / _FREQUENT_SLOTS, _LONGEST_COUNTS_S))

    def _send_until_stopped(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            self.send()

    def _write_health(self, state: str, is_confirmed: bool) -> None:
        if self._health is None:
            return
        try:
            self._health.write(state=state, is_confirmed=is_confirmed)
        except OSError as error:
            logger.warning("health file not written", extra={"slot": self._slot.name, "error": str(error)})


def _open_health(folder: Path | None, slot: str) -> HealthFile | None:
    try:
        return None if folder is None else HealthFile(folder, slot)
    except OSError as error:
        raise ServerFailed(
            f"FLUX2_WORKER_HEALTH_DIR {folder} cannot be created: {error.strerror}; choose a folder that this user can "
            "write"
        ) from error
