"""One claimed item from its claim to its end: render it, store it, commit it.

Whatever goes wrong with an item ends here as a committed failure or as a release to another attempt; an accepted item
never disappears with an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from shared.adapters.locate import locate_adapter
from shared.errors import (
    BlankImage,
    DeviceFault,
    Flux2Error,
    ItemCanceled,
    LeaseLost,
    RunError,
    Stalled,
    StorageUnavailable,
)
from shared.job import ItemError, ItemResult, ItemSpec, Progress
from shared.ledger import Claim
from worker.consumer import device_faults, image_file
from worker.consumer.background import STEP_TO_PREPARE
from worker.consumer.custody import Custody, Owner
from worker.consumer.interfaces import Rendered
from worker.consumer.lease import Lease
from worker.consumer.process_end import EXIT_FAULT, end_process
from worker.consumer.worker import Worker, item_error, redis_retries

logger = logging.getLogger("flux2.worker.consumer")

T = TypeVar("T")

# A commit and a release are repeated this often while Redis is away; the fence makes a late one harmless.
_REDIS_PAUSE_S = 0.5


class ItemRun:
    """The life of one claim: `run` renders in the calling thread, then the uploader's thread stores and commits."""

    def __init__(self, worker: Worker, claim: Claim) -> None:
        self._worker = worker
        self._claim = claim
        self._lease = Lease(worker.ledger, claim, worker.settings, on_stall=self._end_stalled_process)
        self._custody = Custody(claim, lease=self._lease, state=worker.state)

    def run(self) -> None:
        """Render the item and pass the image on to be stored; return when the next item may be claimed."""
        self._custody.open()
        try:
            if self._claim.attempt > 1:
                # An item that may have ended a process renders alone, so that it costs no other item.
                self._worker.uploader.wait()
            rendered = self._attempt(self._render, may_probe=True)
            if rendered is not None:
                self._start_storing(rendered)
        finally:
            self._custody.close(Owner.RENDERING)

    def _start_storing(self, rendered: Rendered) -> None:
        self._custody.pass_to_storing()
        try:
            self._worker.uploader.submit(partial(self._store_and_commit, rendered))
        except BaseException:
            # Without a thread that stores, nobody else would ever stop renewing the lease.
            self._custody.close(Owner.STORING)
            raise

    def _store_and_commit(self, rendered: Rendered) -> None:
        try:
            # The device is not probed for an error here: it already renders the next item.
            result = self._attempt(partial(self._store, rendered), may_probe=False)
            if result is not None:
                self._conclude(result)
        finally:
            self._custody.close(Owner.STORING)

    def _attempt(self, work: Callable[[], T], *, may_probe: bool) -> T | None:
        """Do a part of the work and return what it made; conclude the item and return None if the work fails.

        Args:
            may_probe: whether the device is free to be probed after an error.
        """
        try:
            with self._lease.expect_progress():
                return work()
        except Flux2Error as error:
            self._conclude(error, may_probe=may_probe)
        except Exception as error:
            self._conclude(RunError(f"{type(error).__name__}: {error}"), may_probe=may_probe)
            raise  # a bug: Celery logs it
        return None

    def _conclude(self, outcome: ItemResult | Flux2Error, *, may_probe: bool = False) -> None:
        """Commit, retry, abandon or give up: everything that can follow an outcome is decided here."""
        match outcome:
            case ItemResult():
                self._commit(outcome)
            case LeaseLost():
                logger.warning("item abandoned", extra={"item": self._claim.item_id, "error": str(outcome)})
                self._discard(self._claim.fence)
            case ItemCanceled():
                self._commit(None)
                self._discard(self._claim.fence)
            case Flux2Error():
                self._log_failure(outcome)
                if isinstance(outcome, StorageUnavailable):
                    self._worker.state.record_storage_failure()
                if may_probe and outcome.implicates_device and not outcome.ends_process:
                    outcome = self._probe_device() or outcome
                if outcome.ends_process:
                    self._end_process(outcome)
                elif outcome.retryable:
                    redis_retries(pause_s=_REDIS_PAUSE_S)(self._worker.retry, self._claim, outcome)
                else:
                    self._commit(item_error(outcome))

    def _log_failure(self, error: Flux2Error) -> None:
        where = {"item": self._claim.item_id, "attempt": self._claim.attempt}
        logger.error("item failed", exc_info=error, extra={**where, "code": error.code})

    def _probe_device(self) -> DeviceFault | None:
        # The text of the item's error decides nothing: the same words can follow from a bug and from a broken GPU.
        reason = self._worker.probe()
        return DeviceFault(f"{self._worker.slot.name}: {reason}") if reason else None

    def _end_process(self, error: Flux2Error) -> None:
        self._worker.state.start_draining()  # this may be another thread than the one that claims
        if error.implicates_device:
            device_faults.record(self._worker, self._claim, error)
        end_process(self._worker, EXIT_FAULT, reason=str(error), failed=(self._claim, error))

    def _end_stalled_process(self, progress: Progress) -> None:
        at = f"{progress.stage}, step {progress.step} of {progress.steps}"
        message = f"no progress for {self._worker.settings.worker.stall_s:g} s at {at}"
        self._end_process(Stalled(message, implicates_device=progress.stage != "upload"))

    def _render(self) -> Rendered:
        """Do the part that needs the GPU."""
        spec = self._claim.spec
        rendered = self._worker.renderer.render(spec, self._files(spec), on_progress=self._on_progress)
        self._worker.state.record_corrupted(self._worker.renderer.corrupted)
        # A failed kernel can leave zeros without an error; getbbox() is None only if every pixel is 0.
        if rendered.image.getbbox() is None:
            raise BlankImage(f"every pixel of seed {spec.seed} is black")
        return rendered

    def _on_progress(self, progress: Progress) -> None:
        self._lease.report(progress)
        if progress.stage == "denoise" and progress.step == STEP_TO_PREPARE:
            self._worker.prefetcher.submit(self._prepare_next)

    def _prepare_next(self) -> None:
        """Prepare the item that the ledger would give this slot next."""
        # Only a guess: another slot may claim it, and a better item may come.
        slot = self._worker.slot
        spec = self._worker.ledger.peek_next(slot.pools, slot=slot.name, warm=self._claim.spec.adapter_key)
        if spec is not None:
            self._worker.renderer.prepare(spec, self._files(spec))

    def _files(self, spec: ItemSpec) -> list[Path]:
        return [locate_adapter(ref.path, root=self._worker.settings.adapters.root) for ref in spec.adapters]

    def _store(self, rendered: Rendered) -> ItemResult:
        """Store an image under this claim's own prefix."""
        claim, spec = self._claim, self._claim.spec
        started = time.perf_counter()
        parameters = {
            **spec.model_dump(mode="json"),
            "request_id": claim.job_id,
            "index": claim.index,
            "pipeline": rendered.pipeline.model_dump(mode="json"),
        }
        data = image_file.encode(rendered.image, spec.output_format, parameters)
        encoded = time.perf_counter()

        self._lease.report(Progress(stage="upload", step=spec.num_inference_steps, steps=spec.num_inference_steps))
        key = f"{self._folder(claim.fence)}/image.{spec.output_format}"
        content_type = image_file.content_type(spec.output_format)
        self._worker.store.put(key, data, content_type=content_type)
        uploaded = time.perf_counter()
        self._lease.check()

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

    def _commit(self, outcome: ItemResult | ItemError | None) -> None:
        """End the item; None means canceled. Images that no result names are removed."""
        claim = self._claim
        answer = redis_retries(pause_s=_REDIS_PAUSE_S)(self._worker.ledger.commit, claim, outcome)
        logger.info("item ended", extra={"item": claim.item_id, "fence": claim.fence, "commit": answer})
        if isinstance(outcome, ItemResult) and answer in ("canceled", "stale"):
            self._discard(claim.fence)
        elif answer != "stale":
            # The item has ended: an earlier claim's worker may have stored an image before it died.
            for fence in range(1, claim.fence):
                self._discard(fence)

    def _discard(self, fence: int) -> None:
        """Remove the image that a claim of this item may have stored; the store's lifecycle rule removes leftovers."""
        folder = self._folder(fence)
        try:
            self._worker.store.delete_prefix(folder)
        except StorageUnavailable as error:
            logger.warning("unused image not removed", extra={"folder": folder, "error": str(error)})

    def _folder(self, fence: int) -> str:
        """Return where one claim's objects go; no other item, and no other claim of this one, writes there."""
        return f"results/{self._claim.job_id}/{self._claim.index}/{fence}"
