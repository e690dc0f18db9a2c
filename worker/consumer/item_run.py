"""Process one claimed item to its end: render it, store it, commit it.

Every error of an item ends here as a committed failure or as a release for another attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Final, TypeVar

from PIL import Image

from shared.errors import (
    BlankImage,
    DeviceFault,
    Flux2Error,
    ItemCanceled,
    LeaseLost,
    OutOfMemory,
    RunError,
    Stalled,
    StorageUnavailable,
)
from shared.job import ItemError, ItemResult, Progress
from shared.ledger import Claim
from shared.log_context import leave_item
from worker.consumer import device_faults, image_file, signing, storage_outage
from worker.consumer.adapter_files import ItemFiles
from worker.consumer.background import STEP_TO_PREPARE
from worker.consumer.custody import Custody, Owner
from worker.consumer.device_time import DeviceTime
from worker.consumer.interfaces import RenderedImage
from worker.consumer.item_metrics import count_failure, observe_image
from worker.consumer.item_previews import ItemPreviews
from worker.consumer.item_trace import ItemTrace
from worker.consumer.lease import Lease
from worker.consumer.process_end import EXIT_FAULT, end_process
from worker.consumer.worker import Worker, item_error, redis_retries

logger = logging.getLogger("flux2.worker.consumer")

T = TypeVar("T")

_THUMBNAIL: Final = "thumbnail.webp"

# Pause between repeats of a commit or a release while Redis is away; the fence makes a late one harmless.
_REDIS_PAUSE_S = 0.5


class ItemRun:
    """The life of one claim: `run` renders in the calling thread, then the uploader's thread stores and commits."""

    def __init__(self, worker: Worker, claim: Claim, *, claim_s: float = 0.0) -> None:
        self._worker = worker
        self._claim = claim
        self._trace = ItemTrace(worker.tracer, claim, slot=worker.slot.name, claim_s=claim_s)
        self._device_time = DeviceTime(devices=worker.slot.devices)
        self._previews = ItemPreviews(worker.ledger.previews, claim, every=worker.settings.worker.preview_steps)
        self._lease = Lease(
            worker.ledger,
            claim,
            worker.settings,
            on_stall=self._end_stalled_process,
            gpu_s=lambda: self._device_time.seconds,
            after_renewal=self._previews.send,
        )
        self._custody = Custody(claim, lease=self._lease, state=worker.state)
        self._files = ItemFiles(claim.spec, ())

    def run(self) -> None:
        """Render the item and pass the image to the storing thread; return when the next item may be claimed."""
        self._custody.open()
        try:
            if self._claim.attempt > 1:
                # This item may have ended a process, so it renders alone: another end costs no other item.
                self._worker.uploader.wait()
            rendered = self._attempt(self._render, may_probe=True)
            if rendered is not None:
                self._start_storing(rendered)
        finally:
            self._custody.close(Owner.RENDERING)

    def _start_storing(self, rendered: RenderedImage) -> None:
        self._custody.pass_to_storing()
        try:
            self._worker.uploader.submit(partial(self._store_and_commit, rendered))
        except BaseException:
            # Without a storing thread, nothing else would ever stop the renewal of the lease.
            self._custody.close(Owner.STORING)
            raise

    def _store_and_commit(self, rendered: RenderedImage) -> None:
        try:
            # The device is not probed: it already renders the next item.
            result = self._attempt(partial(self._store, rendered), may_probe=False)
            if result is not None:
                self._conclude(result)
        finally:
            self._custody.close(Owner.STORING)

    def _attempt(self, work: Callable[[], T], *, may_probe: bool) -> T | None:
        """Do a part of the work and return its result; if it fails, conclude the item and return None.

        Args:
            may_probe: whether the device is free to be probed after an error.
        """
        try:
            with self._lease.expect_progress():
                return work()
        except Flux2Error as error:
            count_failure(error)
            self._conclude(error, may_probe=may_probe)
        except Exception as error:
            count_failure(error)
            # Concluded first: an accepted item must never disappear with an exception.
            self._conclude(RunError(f"{type(error).__name__}: {error}"), may_probe=may_probe)
            raise  # a bug: Celery logs it
        return None

    def _conclude(self, outcome: ItemResult | Flux2Error, *, may_probe: bool = False) -> None:
        with self._trace.ending(outcome):
            self._decide(outcome, may_probe=may_probe)

    def _decide(self, outcome: ItemResult | Flux2Error, *, may_probe: bool) -> None:
        """Decide what follows an outcome: commit, retry, abandon, or end the process."""
        gpu_s = self._device_time.seconds
        match outcome:
            case ItemResult():
                self._commit(outcome)
            case LeaseLost():
                # No commit: the item belongs to another claim, which writes under its own prefix.
                logger.warning("item abandoned", extra={"item": self._claim.item_id, "error": str(outcome)})
                self._discard(self._claim.fence)
            case ItemCanceled():
                self._commit(None)
                self._discard(self._claim.fence)
            case OutOfMemory():
                self._log_failure(outcome)
                self._retry_with_more_memory(outcome)
            case Flux2Error():
                self._log_failure(outcome)
                if isinstance(outcome, StorageUnavailable) and storage_outage.detect(self._worker):
                    redis_retries(pause_s=_REDIS_PAUSE_S)(self._worker.requeue, self._claim, "outage", gpu_s=gpu_s)
                    return
                if may_probe and outcome.implicates_device and not outcome.ends_process:
                    outcome = self._probe_device() or outcome
                if outcome.ends_process:
                    self._end_process(outcome)
                elif outcome.retryable:
                    redis_retries(pause_s=_REDIS_PAUSE_S)(self._worker.retry, self._claim, outcome, gpu_s=gpu_s)
                else:
                    self._commit(item_error(outcome))

    def _retry_with_more_memory(self, error: OutOfMemory) -> None:
        retry, gpu_s = self._worker.retry_with_more_memory, self._device_time.seconds
        answer = redis_retries(pause_s=_REDIS_PAUSE_S)(retry, self._claim, error, gpu_s=gpu_s)
        if answer in ("failed", "canceled"):
            self._discard_earlier()
        if error.ends_process:
            end_process(self._worker, EXIT_FAULT, reason=str(error))

    def _log_failure(self, error: Flux2Error) -> None:
        where = {"item": self._claim.item_id, "attempt": self._claim.attempt}
        logger.error("item failed", exc_info=error, extra={**where, "code": error.code})

    def _probe_device(self) -> DeviceFault | None:
        # The error's text decides nothing: a bug and a broken GPU can produce the same words.
        reason = self._worker.probe()
        return DeviceFault(f"{self._worker.slot.name}: {reason}") if reason else None

    def _end_process(self, error: Flux2Error) -> None:
        # Before anything that takes time: the thread that claims may be another one, and must claim nothing more.
        self._worker.state.start_draining()
        if error.implicates_device:
            device_faults.record_fault(self._worker, self._claim, error)
        end_process(self._worker, EXIT_FAULT, reason=str(error), failed=(self._claim, error))

    def _end_stalled_process(self, progress: Progress) -> None:
        at = f"{progress.stage}, step {progress.step} of {progress.steps}"
        message = f"no progress for {self._worker.settings.worker.stall_s:g} s at {at}"
        # A stalled upload waits for the store, and a stalled download for its source: not for the device.
        stalled = Stalled(message, implicates_device=progress.stage not in ("fetch", "upload"))
        count_failure(stalled)
        self._end_process(stalled)

    def _render(self) -> RenderedImage:
        """Do the part that needs the GPU."""
        with self._worker.adapter_files.open(self._claim.spec, on_fetch=self._report_fetch) as files:
            self._files = files
            if files.fetch_s is not None:
                # From here on, missing progress is a hung kernel again.
                self._report("adapter")
            self._device_time.start()
            try:
                rendered = self._worker.renderer.render(
                    files.spec, files.paths, on_progress=self._on_progress, previews=self._previews
                )
            finally:
                self._device_time.stop()
                # Also if the render failed because of them.
                self._worker.state.record_corrupted(self._worker.renderer.corrupted)
        self._trace.leave()
        # A failed kernel can leave zeros without an error; getbbox() is None only if every pixel is 0.
        if rendered.image.getbbox() is None:
            raise BlankImage(f"every pixel of seed {self._claim.spec.seed} is black")
        return rendered

    def _on_progress(self, progress: Progress) -> None:
        # While Redis is away, the lease makes the render wait.
        self._device_time.stop()
        self._trace.enter(progress.stage)
        self._lease.report(progress)
        # Reference images come from the store.
        if progress.stage != "fetch":
            self._device_time.start()
        if progress.stage == "denoise" and progress.step == STEP_TO_PREPARE:
            self._worker.prefetcher.submit(self._prepare_next)

    def _prepare_next(self) -> None:
        """Prepare the item that this slot would claim next."""
        # Only a guess: another slot may claim it, or a better item may arrive. Slots that guess at the same time get
        # different adapters.
        leave_item()
        slot = self._worker.slot
        spec = self._worker.ledger.peek_next(slot.pools, slot=slot.name, warm=self._claim.spec.adapter_key)
        if spec is None:
            return
        files = self._worker.adapter_files.prefetch(spec, on_fetch=self._check_drain)
        if files is not None:
            self._worker.renderer.prepare(files.spec, files.paths, between=self._check_drain)

    def _report_fetch(self) -> None:
        self._report("fetch")

    def _report(self, stage: str) -> None:
        """Report a stage before the first denoising step."""
        self._trace.enter(stage)
        self._lease.report(Progress(stage=stage, step=0, steps=self._claim.spec.num_inference_steps))

    def _check_drain(self) -> None:
        # What has arrived stays on the disk for the worker that renders the item.
        if self._worker.state.is_draining:
            raise ItemCanceled("the preparation of the next item ends: this worker drains")

    def _store(self, rendered: RenderedImage) -> ItemResult:
        """Store an image under this claim's own prefix."""
        claim, spec = self._claim, self._files.spec
        self._trace.enter("encode image")
        started = time.perf_counter()
        parameters = image_file.image_parameters(
            spec,
            rendered.pipeline,
            adapters=rendered.adapters,
            references=rendered.references,
            index=claim.index,
            request_id=claim.job_id,
        )
        data = image_file.encode(rendered.image, spec.output_format, parameters)
        data, warnings = signing.sign(self._worker.signer, data, spec)
        thumbnail = self._encode_thumbnail(rendered.image)
        encoded = time.perf_counter()

        self._trace.enter("upload")
        self._report_upload()
        key = f"{self._folder(claim.fence)}/image.{spec.output_format}"
        content_type = image_file.content_type(spec.output_format)
        self._worker.store.put(key, data, content_type=content_type)
        stored_thumbnail = self._put_thumbnail(thumbnail)
        uploaded = time.perf_counter()
        # A cancel or a lost lease during the upload ends the attempt here, before the commit.
        self._lease.check()

        timings = {**self._files.timings, **rendered.timings}
        timings |= {"encode_image": encoded - started, "upload": uploaded - encoded}
        return ItemResult(
            key=key,
            format=spec.output_format,
            content_type=content_type,
            width=rendered.image.width,
            height=rendered.image.height,
            sha256=sha256(data).hexdigest(),
            size_bytes=len(data),
            timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
            tokens=rendered.tokens,
            warnings=(*rendered.warnings, *warnings),
            references=rendered.references,
            thumbnail=stored_thumbnail,
            adapters=rendered.adapters,
            pipeline=rendered.pipeline,
        )

    def _encode_thumbnail(self, image: Image.Image) -> bytes | None:
        try:
            return image_file.encode_thumbnail(image)
        except (OSError, ValueError) as error:
            logger.warning("thumbnail not made", extra={"item": self._claim.item_id, "error": str(error)})
            return None

    def _put_thumbnail(self, data: bytes | None) -> str:
        """Store an image's thumbnail next to it, and return its name; empty if it could not be made or stored."""
        if data is None:
            return ""
        # The upload of the image may have taken all of its time.
        self._report_upload()
        try:
            key = f"{self._folder(self._claim.fence)}/{_THUMBNAIL}"
            self._worker.store.put(key, data, content_type=image_file.THUMBNAIL_TYPE)
        except StorageUnavailable as error:
            # The image is stored and would be rendered again for the sake of a small copy. If the store is away, the
            # next item finds out.
            logger.warning("thumbnail not stored", extra={"item": self._claim.item_id, "error": str(error)})
            return ""
        return _THUMBNAIL

    def _report_upload(self) -> None:
        steps = self._claim.spec.num_inference_steps
        self._lease.report(Progress(stage="upload", step=steps, steps=steps))

    def _commit(self, outcome: ItemResult | ItemError | None) -> None:
        """End the item; None means canceled. Remove images that no result names."""
        claim = self._claim
        commit, gpu_s = self._worker.ledger.commit, self._device_time.seconds
        answer = redis_retries(pause_s=_REDIS_PAUSE_S)(commit, claim, outcome, gpu_s=gpu_s)
        logger.info("item ended", extra={"item": claim.item_id, "fence": claim.fence, "commit": answer})
        # `repeated`: the reply to a first commit was lost.
        if isinstance(outcome, ItemResult) and answer in ("committed", "repeated"):
            observe_image(claim.spec, outcome)
        if isinstance(outcome, ItemResult) and answer in ("canceled", "stale"):
            self._discard(claim.fence)
        elif answer != "stale":
            self._discard_earlier()

    def _discard_earlier(self) -> None:
        # A worker of an earlier claim may have stored an image before it died.
        for fence in range(1, self._claim.fence):
            self._discard(fence)

    def _discard(self, fence: int) -> None:
        """Remove what a claim of this item may have stored; the store's lifecycle rule removes leftovers."""
        folder = self._folder(fence)
        try:
            self._worker.store.delete_prefix(folder)
        except StorageUnavailable as error:
            logger.warning("unused image not removed", extra={"folder": folder, "error": str(error)})

    def _folder(self, fence: int) -> str:
        """Return the prefix of one claim's objects."""
        # With the fence, so that a worker that was taken for dead cannot overwrite its successor's image.
        return f"results/{self._claim.job_id}/{self._claim.index}/{fence}"
