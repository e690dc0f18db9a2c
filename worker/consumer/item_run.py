"""What a woken worker does: claim the best item, render it, store it, commit it.

This is the task boundary. Whatever goes wrong with an item ends here as a committed failure or as a release to
another attempt; an accepted item never disappears with an exception.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, TypeVar

import tenacity
from celery import Celery

from shared.adapters.locate import locate_adapter
from shared.celery_app import WAKE, wake
from shared.errors import (
    BlankImage,
    DeviceFault,
    Flux2Error,
    ItemCanceled,
    LeaseLost,
    LedgerUnavailable,
    OutOfMemory,
    RequestError,
    RunError,
    Stalled,
    StorageUnavailable,
    WeightsLost,
)
from shared.job import ItemError, ItemResult, ItemSpec, Progress
from shared.ledger import Claim, Ledger
from shared.settings import Settings
from shared.storage import ObjectStore
from worker.consumer import device_faults, image_file
from worker.consumer.background import STEP_TO_PREPARE, BackgroundUploader, InlineRunner, Prefetcher
from worker.consumer.heartbeat import Slot
from worker.consumer.interfaces import ItemRenderer, Rendered
from worker.consumer.lease import Lease

logger = logging.getLogger("flux2.worker")


Made = TypeVar("Made")

# What another attempt, or another device, could not mend.
_NOT_THE_DEVICES = (RequestError, StorageUnavailable, OutOfMemory, LedgerUnavailable)


def _sound() -> None:
    """The probe of a device that cannot fail."""


@dataclass(frozen=True)
class Worker:
    """Everything an item needs, opened once at start.

    Attributes:
        probe: asks the device for a small calculation; returns what is wrong with it, or None.
        uploader: encodes and stores images.
        prefetcher: prepares the next item.
        end: ends the process at once, whatever its other threads do.
    """

    settings: Settings
    ledger: Ledger
    store: ObjectStore
    celery: Celery
    renderer: ItemRenderer
    slot: Slot
    probe: Callable[[], str | None] = _sound
    uploader: BackgroundUploader | InlineRunner = field(default_factory=InlineRunner)
    prefetcher: Prefetcher = field(default_factory=Prefetcher)
    end: Callable[[int], NoReturn] = os._exit

    def hand_over(self, claim: Claim) -> None:
        """Give the running item to another worker, without counting the attempt; for a shutdown that cannot wait."""
        if self.ledger.release(claim, "drain") == "queued":
            wake(self.celery, claim.spec.pool, count=1)

    def give_up(self, claim: Claim, error: RunError, *, device_failed: bool = True) -> None:
        """Hand the item to another attempt and end this process, which can render nothing more."""
        self.slot.draining.set()  # this may be another thread than the one that claims
        if device_failed:
            device_faults.note(self.ledger, self.slot, claim, error)
        try:
            _retry(self, claim, error)
            handed = [claim]
            while others := [other for other in self.slot.claims if other not in handed]:
                for other in others:
                    self.hand_over(other)
                handed += others
            self.ledger.workers.remove(self.slot.name)
        except LedgerUnavailable as unavailable:
            logger.warning("the lease must run out", extra={"item": claim.item_id, "error": str(unavailable)})
        finally:
            self.end(device_faults.EXIT_FAULT)


def register(worker: Worker) -> None:
    """Make the wake-up task run this worker's next item."""

    @worker.celery.task(name=WAKE)  # type: ignore[untyped-decorator]
    def next_item() -> None:
        run_next(worker)


def run_next(worker: Worker) -> bool:
    """Run one item; a thread stores it. False when there was none to run, or none may be run now."""
    slot = worker.slot
    slot.wakes += 1
    slot.answering = True
    try:
        # What is not claimed now is not forgotten: the audit sends a wake-up again for each item that waits.
        if slot.draining.is_set() or not _can_store(worker) or (claim := _claim(worker)) is None:
            return False
        _run(worker, claim)
        return True
    finally:
        slot.answering = False


def _claim(worker: Worker) -> Claim | None:
    slot = worker.slot
    try:
        claim = worker.ledger.claim_next(slot.pools, slot=slot.name, boot=slot.boot, warm=worker.renderer.warm_key)
    except LedgerUnavailable as error:
        logger.warning("nothing claimed", extra={"error": str(error)})
        return None
    if claim is not None:
        where = {"item": claim.item_id, "fence": claim.fence, "attempt": claim.attempt}
        logger.info("item claimed", extra={**where, "queued_s": claim.queued_s})
    return claim


def _run(worker: Worker, claim: Claim) -> None:
    """Take a claim to its end, whichever that is."""

    def stalled(progress: Progress) -> None:
        at = f"{progress.stage}, step {progress.step} of {progress.steps}"
        error = Stalled(f"no progress for {worker.settings.worker.stall_s:g} s at {at}")
        worker.give_up(claim, error, device_failed=progress.stage != "upload")

    with ExitStack() as held:
        held.enter_context(worker.slot.running(claim))
        lease = held.enter_context(Lease(worker.ledger, claim, worker.settings, on_stall=stalled))
        if claim.attempt > 1:
            worker.uploader.wait()  # what has ended a process may do so again: nothing else is then lost with it
        rendered = _attempt(worker, claim, lease, partial(_render, worker, claim, lease), on_device=True)
        if rendered is None:
            return
        keep = held.pop_all()
    try:
        worker.uploader.submit(partial(_finish, worker, claim, lease, rendered, keep))
    except RuntimeError:  # no thread could be started: the lease must not be renewed for nobody
        keep.close()
        raise


def _finish(worker: Worker, claim: Claim, lease: Lease, rendered: Rendered, held: ExitStack) -> None:
    """Store what was rendered, end the item and let go of its lease."""
    with held:
        result = _attempt(worker, claim, lease, partial(_store, worker, claim, lease, rendered), on_device=False)
        if result is not None:
            _commit(worker, claim, result)


def _attempt(worker: Worker, claim: Claim, lease: Lease, work: Callable[[], Made], *, on_device: bool) -> Made | None:
    """Do a part of an item's work and return what it made; None after an end of another kind, which is told.

    Args:
        on_device: whether an error may be the device's. If not that is not asked, which has other work meanwhile.
    """
    try:
        with lease.watched():
            return work()
    except LeaseLost as error:
        logger.warning("item abandoned", extra={"item": claim.item_id, "error": str(error)})
        _discard(worker, claim)
    except ItemCanceled:
        _commit(worker, claim, None)
        _discard(worker, claim)
    except Flux2Error as error:
        _fail(worker, claim, error, on_device=on_device)
    except Exception as error:
        _fail(worker, claim, RunError(f"{type(error).__name__}: {error}"), on_device=on_device)
        raise
    return None


def _render(worker: Worker, claim: Claim, lease: Lease) -> Rendered:
    """Do what needs the GPU."""
    spec = claim.spec

    def on_progress(progress: Progress) -> None:
        lease.report(progress)
        if progress.stage == "denoise" and progress.step == STEP_TO_PREPARE:
            worker.prefetcher.submit(partial(_prepare_next, worker, spec.adapter_key))

    rendered = worker.renderer.render(spec, _files(worker, spec), on_progress=on_progress)
    worker.slot.report_drift(worker.renderer.corrupted)
    if rendered.image.getbbox() is None:
        raise BlankImage(f"every pixel of seed {spec.seed} is black")
    return rendered


def _prepare_next(worker: Worker, warm: str) -> None:
    """Let the renderer prepare for the item that this slot would be given next, if it stays so."""
    slot = worker.slot
    spec = worker.ledger.peek_next(slot.pools, slot=slot.name, warm=warm)
    if spec is not None:
        worker.renderer.prepare(spec, _files(worker, spec))


def _files(worker: Worker, spec: ItemSpec) -> list[Path]:
    return [locate_adapter(ref.path, root=worker.settings.adapters.root) for ref in spec.adapters]


def _store(worker: Worker, claim: Claim, lease: Lease, rendered: Rendered) -> ItemResult:
    """Store an image under this claim's own prefix."""
    spec = claim.spec
    started = time.perf_counter()
    parameters = {
        **spec.model_dump(mode="json"),
        "request_id": claim.job_id,
        "index": claim.index,
        "pipeline": rendered.pipeline.model_dump(mode="json"),
    }
    data = image_file.encode(rendered.image, spec.output_format, parameters)
    encoded = time.perf_counter()

    lease.report(Progress(stage="upload", step=spec.num_inference_steps, steps=spec.num_inference_steps))
    key = f"{_folder(claim)}/image.{spec.output_format}"
    content_type = image_file.content_type(spec.output_format)
    worker.store.put(key, data, content_type=content_type)
    uploaded = time.perf_counter()
    lease.check()

    timings = {**rendered.timings, "encode_image": encoded - started, "upload": uploaded - encoded}
    return ItemResult(
        key=key,
        format=spec.output_format,
        content_type=content_type,
        width=rendered.image.width,
        height=rendered.image.height,
        sha256=sha256(data).hexdigest(),
        size_bytes=len(data),
        timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
        adapters=rendered.adapters,
        pipeline=rendered.pipeline,
    )


def _can_store(worker: Worker) -> bool:
    """Whether an image could be stored: after a failure the GPU is not spent until the store answers again."""
    if not worker.slot.storage_failed:
        return True
    try:
        worker.store.check()
    except StorageUnavailable as error:
        logger.warning("no item claimed while the storage is away", extra={"error": str(error)})
        return False
    worker.slot.storage_failed = False
    return True


def _fail(worker: Worker, claim: Claim, error: Flux2Error, *, on_device: bool) -> None:
    """End the item, or hand it to another attempt if another may fare better."""
    logger.error(
        "item failed", exc_info=error, extra={"item": claim.item_id, "attempt": claim.attempt, "code": error.code}
    )
    if isinstance(error, StorageUnavailable):
        worker.slot.storage_failed = True
    if isinstance(error, WeightsLost):
        worker.give_up(claim, error)
    elif on_device and not isinstance(error, _NOT_THE_DEVICES) and (reason := worker.probe()):
        worker.give_up(claim, DeviceFault(f"{worker.slot.name}: {reason}"))
    elif isinstance(error, RequestError) or not error.retryable:
        _commit(worker, claim, _item_error(error))
    else:
        _while_redis_is_away()(_retry, worker, claim, error)


def _retry(worker: Worker, claim: Claim, error: Flux2Error) -> None:
    if worker.ledger.release(claim, "retry", _item_error(error)) == "queued":
        wake(worker.celery, claim.spec.pool, count=1)


def _item_error(error: Flux2Error) -> ItemError:
    return ItemError(code=error.code, message=str(error), retryable=error.retryable)


def _commit(worker: Worker, claim: Claim, outcome: ItemResult | ItemError | None) -> None:
    """End the item; what no result names is removed: this claim's image, or that of claims before it."""
    answer = _while_redis_is_away()(worker.ledger.commit, claim, outcome)
    logger.info("item ended", extra={"item": claim.item_id, "fence": claim.fence, "commit": answer})
    if isinstance(outcome, ItemResult) and answer in ("canceled", "stale"):
        _discard(worker, claim)
    elif answer != "stale":
        for fence in range(1, claim.fence):
            _discard(worker, replace(claim, fence=fence))


def _discard(worker: Worker, claim: Claim) -> None:
    """Remove what this claim may have stored, since no result will name it; the storage's lifecycle finds the rest."""
    try:
        worker.store.delete_prefix(_folder(claim))
    except StorageUnavailable as error:
        logger.warning("an unused image stays", extra={"folder": _folder(claim), "error": str(error)})


def _while_redis_is_away() -> tenacity.Retrying:
    """Repeat a write until Redis answers: there is nothing else to do, and the fence makes a late one harmless."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(LedgerUnavailable),
        wait=tenacity.wait_fixed(0.5),
    )


def _folder(claim: Claim) -> str:
    """Where this claim's objects go: no other item, and no other claim of this one, writes there."""
    return f"results/{claim.job_id}/{claim.index}/{claim.fence}"
