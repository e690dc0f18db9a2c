"""The life of a worker process: load, recover, listen, drain."""

from __future__ import annotations

import logging
import os
import threading
import time

from celery.signals import worker_ready, worker_shutting_down

from shared.caretaker import Caretaker
from shared.celery_app import make_celery, wake
from shared.ledger import Ledger, keys
from shared.settings import Settings
from shared.storage import open_store
from worker.device import pick_device
from worker.pipeline.load import load_components
from worker.render import Renderer
from worker.slot import Slot, slot_name
from worker.tasks import Worker, register

logger = logging.getLogger("flux2.worker")


def serve(settings: Settings) -> None:
    """Load the base model, then take items until SIGTERM."""
    opened = _open(settings)
    slot, ledger = opened.slot, opened.ledger
    # What an earlier process of this slot held is free again at once, not a lease later.
    orphans = ledger.orphan(slot=slot.name, boot=slot.boot)
    if orphans:
        logger.warning("items of an earlier process requeued", extra={"slot": slot.name, "count": orphans})
        wake(opened.celery, settings.model.id, count=orphans)
    caretaker = Caretaker(ledger, opened.celery, settings.queue, [settings.model.id])
    caretaker.start()
    # The slot is announced when Celery listens, not before: a slot in the list takes work.
    worker_ready.connect(lambda **_: slot.start(), weak=False)
    worker_shutting_down.connect(lambda **_: _drain(opened), weak=False)
    try:
        opened.celery.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=solo",
                f"--queues={keys.wake_queue(settings.model.id)}",
                f"--hostname={slot.name}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel=WARNING",
            ]
        )
    finally:
        caretaker.stop()
        slot.stop()


def _open(settings: Settings) -> Worker:
    device = pick_device(settings.worker.device)
    started = time.perf_counter()
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    components = load_components(settings.model, device=device, hf_token=token)
    logger.info(
        "base model loaded",
        extra={"revision": components.revision, "seconds": round(time.perf_counter() - started, 2)},
    )
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=10)
    ledger.publish_base(settings.model.id, revision=components.revision, layers=components.layers)
    opened = Worker(
        settings=settings,
        ledger=ledger,
        store=open_store(settings),
        celery=make_celery(settings.redis.url, side="worker", timeout_s=settings.redis.timeout_s),
        renderer=Renderer(components, prompt_cache=settings.worker.prompt_cache),
        slot=Slot(
            ledger,
            name=slot_name(settings.worker.name, str(device)),
            model=settings.model.id,
            device=str(device),
            revision=components.revision,
            precision=components.precision,
        ),
    )
    register(opened)
    return opened


def _drain(worker: Worker) -> None:
    """On SIGTERM Celery stops taking wake-ups and waits for the running item; past `drain_s` hand it over and go."""

    def hand_over() -> None:
        claim = worker.slot.claim
        if claim is None:
            return
        logger.warning("item handed over", extra={"item": claim.item_id, "drain_s": worker.settings.worker.drain_s})
        worker.requeue(claim)
        worker.ledger.leave(worker.slot.name)
        # The main thread is inside a kernel that nothing can interrupt.
        os._exit(0)

    timer = threading.Timer(worker.settings.worker.drain_s, hand_over)
    timer.daemon = True
    timer.start()
