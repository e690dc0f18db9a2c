"""Keep one process for each slot running, restart those that die, and drain all of them at SIGTERM."""

from __future__ import annotations

import logging
import queue
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.local.backoff import STABLE_AFTER_S, Backoff
from worker.consumer.slot_health import read_health
from worker.fleet.slot_process import SlotProcess

logger = logging.getLogger("flux2.worker.fleet")

_POLL_S = 0.2
# After the drain itself, a process stores its last image and leaves the ledger.
_GRACE_S = 20.0
# A process has to hang for this long while this one watches it: after both were frozen together, as in a paused
# container, it sends a heartbeat within this time, even if Redis does not answer.
_HUNG_WATCHED_S = 15.0

# What a process reports that cannot start because of its settings, its files or its servers.
_CANNOT_START = 1


@dataclass
class _Kept:
    """A slot whose process is kept alive.

    Attributes:
        is_done: whether a signal to its process alone drained it; it stays down.
        cannot_start: whether each of its processes said so, soon after its start.
        hung_since_s: since when its process has been seen to hang, by the monotonic clock; None if it does not.
    """

    process: SlotProcess
    backoff: Backoff
    is_done: bool = False
    cannot_start: bool = False
    hung_since_s: float | None = None


class Supervisor:
    """Runs slots until SIGTERM or SIGINT, or until every one of them has ended.

    Args:
        drain_s: seconds that a slot's running item has after the signal.
        health_dir: where the slots note their heartbeats; None if they note none, and a slot that hangs stays.
    """

    def __init__(self, slots: Sequence[SlotProcess], *, drain_s: float, health_dir: Path | None = None) -> None:
        self._slots = [_Kept(slot, Backoff()) for slot in slots]
        self._health_dir = health_dir
        self._grace_s = drain_s + _GRACE_S

    def run(self) -> int:
        """Start every slot, and return the exit status when none runs any more.

        It is 0 after a drain, and 1 if no slot could start.
        """
        with _stop_signals() as signals:
            try:
                for slot in self._slots:
                    slot.process.start()
                while not _next_signal(signals, timeout_s=_POLL_S):
                    if (status := self._look_after()) is not None:
                        return status
                self._drain(signals)
                return 0
            finally:
                for slot in self._slots:
                    slot.process.stop(grace_s=0)

    def _look_after(self) -> int | None:
        """Restart the processes that died; return an exit status if the supervisor's work is over."""
        self._kill_hung(now_s=time.monotonic())
        for slot in self._slots:
            if not slot.is_done and (status := slot.process.status) is not None:
                self._restart(slot, status)
        if all(slot.is_done for slot in self._slots):
            logger.warning("every slot was drained")
            return 0
        # Some of them may need longer to fail than the first wait takes; the waits grow until all are down at once.
        if all(slot.cannot_start and not slot.process.is_running for slot in self._slots):
            logger.error("no slot could start; the lines above say why")
            return 1
        return None

    def _kill_hung(self, *, now_s: float) -> None:
        """Kill processes that run without heartbeats: nothing inside them can run, not even their own watchdogs."""
        if self._health_dir is None:
            return
        hung = {health.pid for health in read_health(self._health_dir) if health.hangs(now_s=now_s)}
        for slot in self._slots:
            if slot.process.pid not in hung:
                slot.hung_since_s = None
            elif slot.hung_since_s is None:
                slot.hung_since_s = now_s
            elif now_s - slot.hung_since_s > _HUNG_WATCHED_S:
                # Once in this time: a process that waits for a driver in the kernel ends only when the driver answers.
                slot.hung_since_s = now_s
                logger.critical("slot hangs: no heartbeat; it is killed", extra={"slot": slot.process.label})
                slot.process.kill()

    def _restart(self, slot: _Kept, status: int) -> None:
        process, now = slot.process, time.monotonic()
        # A process that has not set its handlers yet dies of the signal.
        if status in (0, -signal.SIGTERM):
            slot.is_done = True
            logger.warning("slot was drained; it stays down", extra={"slot": process.label})
            return
        # Measured once: the time until a restart is due does not count as life.
        if slot.backoff.due_s is None:
            lived_s = now - process.started_s
            is_first = not process.restarts
            slot.cannot_start = status == _CANNOT_START and lived_s < STABLE_AFTER_S and (is_first or slot.cannot_start)
            logger.error(
                "slot's process ended", extra={"slot": process.label, "status": status, "lived_s": int(lived_s)}
            )
        if slot.backoff.is_due(started_s=process.started_s, now_s=now):
            process.restart()
            logger.warning("slot's process restarted", extra={"slot": process.label, "pid": process.pid})

    def _drain(self, signals: queue.SimpleQueue[int]) -> None:
        """Let all slots finish or hand over their items; a second signal ends the wait."""
        logger.warning("draining every slot", extra={"grace_s": self._grace_s})
        for slot in self._slots:
            slot.process.terminate()
        deadline_s = time.monotonic() + self._grace_s
        while any(slot.process.is_running for slot in self._slots):
            if time.monotonic() > deadline_s or _next_signal(signals, timeout_s=_POLL_S):
                logger.error("slots that still run are killed; their items return to the queue")
                return


@contextmanager
def _stop_signals() -> Iterator[queue.SimpleQueue[int]]:
    """Collect SIGTERM and SIGINT in a queue instead of ending this process."""
    # Signal handlers may use a SimpleQueue; the thread that one interrupts could hold the lock of an Event.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: signals.put(number))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next_signal(signals: queue.SimpleQueue[int], *, timeout_s: float) -> int | None:
    try:
        return signals.get(timeout=timeout_s)
    except queue.Empty:
        return None
