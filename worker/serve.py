"""The life of a worker process: check, load, recover, listen, drain."""

from __future__ import annotations

import logging
import os
import threading

import tenacity
import torch
from celery.signals import worker_ready, worker_shutting_down

from shared.caretaker import Caretaker
from shared.celery_app import make_celery, wake
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger, keys
from shared.settings import Settings
from shared.storage import open_store
from worker.device import device_id, pick_device
from worker.engines.checkout import load_toolkit
from worker.pipeline.load import load_components
from worker.render import Renderer
from worker.slot import Slot, held, slot_name
from worker.tasks import Worker, register

logger = logging.getLogger("flux2.worker")

_LEDGER_TIMEOUT_S = 10.0
# How often a drain that is due looks whether an item has begun after all.
_DRAIN_POLL_S = 0.2


def serve(settings: Settings) -> None:
    """Load the base model, then take items until SIGTERM.

    Raises:
        ServerFailed: another worker on this host has the slot's name.
        LedgerUnavailable, StorageUnavailable: Redis or the object store does not answer at the start.
        CheckpointError: the base model cannot be loaded.
    """
    device = pick_device(settings.worker.device)
    name = slot_name(settings.worker.name, device_id(device))
    with held(name, redis_url=settings.redis.url):
        opened = _open(settings, name, device)
        _listen(opened)


def _open(settings: Settings, name: str, device: torch.device) -> Worker:
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=_LEDGER_TIMEOUT_S)
    store = open_store(settings)
    # Before minutes of loading, and before any item fails for it.
    ledger.ping()
    store.check()
    toolkit = load_toolkit(settings.ai_toolkit_path) if settings.ai_toolkit_path else None
    components = load_components(settings.model, device=device, hf_token=settings.hub_token())
    # Redis may be away by now; the loaded model is worth the wait.
    _patiently()(ledger.publish_base, settings.model.id, revision=components.revision, layers=components.layers)
    renderer = Renderer(components, prompt_cache=settings.worker.prompt_cache, toolkit=toolkit)
    opened = Worker(
        settings=settings,
        ledger=ledger,
        store=store,
        celery=make_celery(settings.redis.url, side="worker", timeout_s=settings.redis.timeout_s),
        renderer=renderer,
        slot=Slot(
            ledger,
            name=name,
            model=settings.model.id,
            device=str(device),
            revision=components.revision,
            precision=components.precision,
            engines=renderer.engines,
        ),
    )
    register(opened)
    return opened


def _listen(worker: Worker) -> None:
    slot = worker.slot
    # What an earlier process of this slot held is free again at once, not a lease later.
    orphans = _patiently()(worker.ledger.orphan, slot=slot.name, boot=slot.boot)
    if orphans:
        logger.warning("items of an earlier process requeued", extra={"slot": slot.name, "count": orphans})
        for pool in slot.pools:
            wake(worker.celery, pool, count=orphans)
    caretaker = Caretaker(worker.ledger, worker.celery, worker.settings.queue, slot.pools)
    caretaker.start()
    # The slot is announced when Celery listens, not before: a slot in the list takes work.
    worker_ready.connect(lambda **_: slot.start(), weak=False)
    worker_shutting_down.connect(lambda **_: _drain(worker), weak=False)
    try:
        worker.celery.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=solo",
                f"--queues={','.join(keys.wake_queue(pool) for pool in slot.pools)}",
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


def _patiently() -> tenacity.Retrying:
    return tenacity.Retrying(retry=tenacity.retry_if_exception_type(LedgerUnavailable), wait=tenacity.wait_fixed(2))


def _drain(worker: Worker) -> None:
    """On SIGTERM Celery stops taking wake-ups and waits for the running item; past `drain_s` hand it over and go."""

    def hand_over() -> None:
        threading.Event().wait(worker.settings.worker.drain_s)
        while (claim := worker.slot.claim) is None:
            threading.Event().wait(_DRAIN_POLL_S)
        logger.warning("item handed over", extra={"item": claim.item_id, "drain_s": worker.settings.worker.drain_s})
        try:
            worker.requeue(claim)
            worker.ledger.leave(worker.slot.name)
        finally:
            # The main thread is inside a kernel that nothing can interrupt. Without Redis the lease does the rest.
            os._exit(0)

    threading.Thread(target=hand_over, name="flux2-drain", daemon=True).start()
