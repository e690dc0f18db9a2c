"""The parts of one worker process, opened once at its start and passed to the code that handles an item."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import tenacity
from celery import Celery

from shared.celery_app import send_wakeups
from shared.errors import Flux2Error, LedgerUnavailable
from shared.job import ItemError
from shared.ledger import Claim, Ledger
from shared.settings import Settings
from shared.storage import ObjectStore
from worker.consumer.background import BackgroundUploader, InlineRunner, Prefetcher
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.interfaces import ItemRenderer
from worker.consumer.slot import Slot
from worker.consumer.worker_state import WorkerState


def _no_fault() -> None:
    """Report no fault: the probe of a device that cannot fail."""


@dataclass(frozen=True)
class Worker:
    """The services that handle an item.

    Attributes:
        probe: runs a small calculation on the device; returns a description of the fault, or None.
        uploader: encodes and stores images.
        prefetcher: prepares the next item.
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
    probe: Callable[[], str | None] = _no_fault
    uploader: BackgroundUploader | InlineRunner = field(default_factory=InlineRunner)
    prefetcher: Prefetcher = field(default_factory=Prefetcher)
    exit_process: Callable[[int], NoReturn] = os._exit

    # A lost wake-up costs time only: the audit sends it again.

    def requeue(self, claim: Claim, reason: Literal["drain", "outage"] = "drain") -> None:
        """Return an item to the queue without counting the attempt, and wake another worker for it."""
        if self.ledger.release(claim, reason) == "queued":
            send_wakeups(self.celery, claim.spec.pool, count=1)

    def retry(self, claim: Claim, error: Flux2Error) -> None:
        """Return an item to the queue for another attempt; the ledger fails it with `error` if this was its last."""
        if self.ledger.release(claim, "retry", item_error(error)) == "queued":
            send_wakeups(self.celery, claim.spec.pool, count=1)


def item_error(error: Flux2Error) -> ItemError:
    """Convert an error to the form that the ledger stores."""
    return ItemError(code=error.code, message=str(error), retryable=error.retryable)


def redis_retries(*, pause_s: float) -> tenacity.Retrying:
    """Return a tenacity caller that repeats a call until Redis answers, without a limit."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(LedgerUnavailable), wait=tenacity.wait_fixed(pause_s)
    )
