"""The parts of one worker process, opened once at its start and passed to the code that handles an item."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import tenacity
from celery import Celery

from shared.celery_app import send_wakeups
from shared.errors import Flux2Error, LedgerUnavailable, OutOfMemory
from shared.job import ItemError, large_pool
from shared.ledger import Claim, Ledger
from shared.provenance.signer import ImageSigner
from shared.settings import Settings
from shared.storage import ObjectStore
from shared.tracing import NO_TRACER, Tracer
from worker.consumer.adapter_files import AdapterFiles
from worker.consumer.background import BackgroundUploader, InlineRunner, Prefetcher
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.interfaces import ItemRenderer
from worker.consumer.slot import Slot
from worker.consumer.worker_state import WorkerState

logger = logging.getLogger("flux2.worker.consumer")


def _no_fault() -> None:
    """Report no fault: the probe of a device that cannot fail."""


@dataclass(frozen=True)
class Worker:
    """The services that handle an item.

    Attributes:
        probe: runs a small calculation on the device; returns a description of the fault, or None.
        uploader: encodes and stores images.
        prefetcher: prepares the next item.
        adapter_files: finds or downloads the adapters of items.
        tracer: traces the items.
        signer: signs images; None if they are not signed.
        exit_process: exits without waiting for other threads; only `process_end.end_process` calls it.
    """

    settings: Settings
    ledger: Ledger
    store: ObjectStore
    celery: Celery
    renderer: ItemRenderer
    slot: Slot
    state: WorkerState
    heartbeat: Heartbeat
    adapter_files: AdapterFiles
    probe: Callable[[], str | None] = _no_fault
    uploader: BackgroundUploader | InlineRunner = field(default_factory=InlineRunner)
    prefetcher: Prefetcher = field(default_factory=Prefetcher)
    exit_process: Callable[[int], NoReturn] = os._exit
    tracer: Tracer = NO_TRACER
    signer: ImageSigner | None = None

    # A lost wake-up costs time only: the audit sends it again.

    # `gpu_s` is as in `Ledger.commit`.

    def requeue(
        self, claim: Claim, reason: Literal["drain", "outage"] = "drain", *, gpu_s: float | None = None
    ) -> None:
        """Return an item to the queue without counting the attempt, and wake another worker for it."""
        if self.ledger.release(claim, reason, gpu_s=gpu_s) == "queued":
            self._wake(claim.pool)

    def retry(self, claim: Claim, error: Flux2Error, *, gpu_s: float | None = None) -> None:
        """Return an item to the queue for another attempt; the ledger fails it with `error` if this was its last."""
        reason: Literal["later", "retry"] = "later" if error.needs_time else "retry"
        if self.ledger.release(claim, reason, item_error(error), gpu_s=gpu_s) == "queued":
            self._wake(claim.pool)

    def retry_with_more_memory(
        self, claim: Claim, error: OutOfMemory, *, gpu_s: float | None = None
    ) -> Literal["queued", "failed", "canceled", "stale"]:
        """Queue an item that did not fit for a device with more memory; it fails if no live worker has more."""
        slot = self.slot
        size = f"has {slot.memory_bytes / 2**30:.1f} GiB" if slot.memory_bytes else "reports no size of its memory"
        answer = self.ledger.release_too_large(
            claim,
            memory_bytes=slot.memory_bytes,
            error=item_error(error, f"{error}; a worker has more memory, but this was the item's last attempt"),
            too_large=item_error(
                error,
                f"{error}, or start a worker with more memory: this device {size}, and no live worker of "
                f"{slot.model} that offers what the image requires has more",
            ),
            gpu_s=gpu_s,
        )
        if answer == "queued":
            where = {"item": claim.item_id, "slot": slot.name, "memory_bytes": slot.memory_bytes}
            logger.warning("item does not fit on this device; it waits for one with more memory", extra=where)
            self._wake(large_pool(claim.pool))
        return answer

    def _wake(self, pool: str) -> None:
        name = self.ledger.wakeups.name(pool)
        if name is not None:
            send_wakeups(self.celery, name, count=1)


def item_error(error: Flux2Error, message: str | None = None) -> ItemError:
    """Convert an error to the form that the ledger stores, with another message if one is given."""
    return ItemError(code=error.code, message=message or str(error), retryable=error.retryable)


def redis_retries(*, pause_s: float) -> tenacity.Retrying:
    """Return a tenacity caller that repeats a call until Redis answers, without a limit."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(LedgerUnavailable), wait=tenacity.wait_fixed(pause_s)
    )
