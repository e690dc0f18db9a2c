"""Run a worker process after its model is loaded: recover, announce the slot, consume, drain."""

from __future__ import annotations

import logging
import queue
import signal
import warnings

from celery.platforms import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down

from shared.caretaker import Caretaker
from shared.celery_app import send_wakeups
from shared.ledger import keys
from shared.metrics.definitions import WORKER_ENDS
from shared.metrics.tally import PROCESS
from worker.consumer import device_faults
from worker.consumer.drain import Drain
from worker.consumer.wakeup import register_wakeup_task
from worker.consumer.watchdog import Watchdog
from worker.consumer.worker import Worker, redis_retries

logger = logging.getLogger("flux2.worker.consumer")

# Loading a model can take minutes, so a worker that has loaded one waits for Redis instead of ending.
START_RETRY_S = 2.0


def consume(worker: Worker) -> None:
    """Run items until SIGTERM."""
    register_wakeup_task(worker)
    _reclaim_items(worker)
    caretaker = Caretaker(worker.ledger, worker.celery, worker.settings.queue, is_of_slot=True)
    caretaker.start()
    try:
        # The caretaker runs during this wait too: it serves all jobs and needs no device.
        if _wait_until_trusted(worker):
            _run_celery(worker)
        PROCESS.count(WORKER_ENDS, "drained")
    finally:
        caretaker.stop()
        worker.heartbeat.stop()


def _reclaim_items(worker: Worker) -> None:
    """Requeue the items that an earlier process of this slot was running."""
    slot = worker.slot
    # Without this they would wait until their leases expire.
    reclaimed = redis_retries(pause_s=START_RETRY_S)(worker.ledger.reclaim, slot=slot.name, boot=slot.boot)
    if reclaimed:
        logger.warning("items of an earlier process requeued", extra={"slot": slot.name, "count": reclaimed})
        for name in slot.wake_names:
            send_wakeups(worker.celery, name, count=reclaimed)


def _wait_until_trusted(worker: Worker) -> bool:
    """Block while the slot's device is faulty; return False if SIGTERM or SIGINT came first."""
    # Signal handlers may use a SimpleQueue; the thread that one interrupts could hold the lock of an Event.
    stop_signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    # Celery installs its own handlers only when it starts.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: stop_signals.put(number))
    try:
        trusted = redis_retries(pause_s=START_RETRY_S)(device_faults.wait_until_trusted, worker, stop_signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A signal may have come after the last look at the queue.
    return trusted and stop_signals.empty()


def _run_celery(worker: Worker) -> None:
    watchdog, drain = Watchdog(worker), Drain(worker)
    drain.start()
    # The slot is announced once Celery listens, not before: the service counts on every announced slot.
    worker_ready.connect(lambda **_: worker.heartbeat.start(), weak=False)
    worker_ready.connect(lambda **_: watchdog.start(), weak=False)
    worker_shutting_down.connect(lambda **_: drain.begin(), weak=False)
    _accept_root()
    try:
        worker.celery.worker_main(_celery_arguments(worker))
    finally:
        worker.uploader.wait()
        worker.prefetcher.wait()
        watchdog.stop()
        drain.stop()


def _accept_root() -> None:
    """Suppress Celery's warning about a worker that runs as root, and no other warning."""
    # Celery warns because messages in pickle run code. This worker accepts JSON only, and its task has no arguments.
    warnings.filterwarnings("ignore", "You're running the worker with superuser privileges", SecurityWarning)


def _celery_arguments(worker: Worker) -> list[str]:
    return [
        "--quiet",
        "worker",
        # One item at a time in this very process: CUDA cannot be used in a forked child.
        "--pool=solo",
        f"--queues={','.join(keys.wake_queue(name) for name in worker.slot.wake_names)}",
        f"--hostname={worker.slot.name}",
        # The ledger knows all workers, and the solo pool answers no other worker while it renders.
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel=WARNING",
    ]
