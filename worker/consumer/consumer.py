"""The part of a worker's life in which it takes items: recover, announce, listen, drain.

It needs no torch: what loads the model is in `worker.serve`.
"""

from __future__ import annotations

import logging
import signal
import threading

import tenacity
from celery.signals import worker_ready, worker_shutting_down

from shared.caretaker import Caretaker
from shared.celery_app import wake
from shared.errors import LedgerUnavailable
from shared.ledger import keys
from worker.consumer import device_faults
from worker.consumer.drain import drain
from worker.consumer.item_run import Worker, register
from worker.consumer.watchdog import Watch

logger = logging.getLogger("flux2.worker")


def listen(worker: Worker) -> None:
    """Take items until SIGTERM."""
    slot = worker.slot
    register(worker)
    # What an earlier process of this slot held is free again at once, not a lease later.
    reclaimed = patiently()(worker.ledger.reclaim, slot=slot.name, boot=slot.boot)
    if reclaimed:
        logger.warning("items of an earlier process requeued", extra={"slot": slot.name, "count": reclaimed})
        for pool in slot.pools:
            wake(worker.celery, pool, count=reclaimed)
    caretaker = Caretaker(worker.ledger, worker.celery, worker.settings.queue)
    caretaker.start()
    try:
        if _trusted(worker):
            _consume(worker)
    finally:
        caretaker.stop()
        slot.stop()


def patiently() -> tenacity.Retrying:
    """Repeat a call until Redis is back: a loaded model is worth the wait."""
    return tenacity.Retrying(retry=tenacity.retry_if_exception_type(LedgerUnavailable), wait=tenacity.wait_fixed(2))


def _trusted(worker: Worker) -> bool:
    """Wait while the slot's device is not trusted; False when the process was told to stop meanwhile."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stopped.set())
    try:
        return patiently()(device_faults.wait_until_trusted, worker.ledger, worker.slot, stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _consume(worker: Worker) -> None:
    watch = Watch(worker)
    # The slot is announced when Celery listens, not before: a slot in the list takes work.
    worker_ready.connect(lambda **_: worker.slot.start(), weak=False)
    worker_ready.connect(lambda **_: watch.start(), weak=False)
    worker_shutting_down.connect(lambda **_: drain(worker), weak=False)
    try:
        worker.celery.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=solo",
                f"--queues={','.join(keys.wake_queue(pool) for pool in worker.slot.pools)}",
                f"--hostname={worker.slot.name}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel=WARNING",
            ]
        )
    finally:
        worker.uploader.wait()
        worker.prefetcher.wait()
        watch.stop()
