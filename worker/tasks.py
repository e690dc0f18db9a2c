"""What a woken worker does: claim the best item, render it, store it, commit it.

This is the task boundary. Whatever goes wrong with an item ends here as a committed failure or as a release to
another attempt; an accepted item never disappears with an exception.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from hashlib import sha256

import tenacity
from celery import Celery

from shared.adapters.locate import locate
from shared.celery_app import WAKE, wake
from shared.errors import (
    Flux2Error,
    ItemCanceled,
    LeaseLost,
    LedgerUnavailable,
    RequestError,
    RunError,
    StorageUnavailable,
)
from shared.job import ItemError, ItemResult, Progress
from shared.ledger import Claim, Ledger
from shared.settings import Settings
from shared.storage import ObjectStore
from worker import imagefile
from worker.lease import Lease
from worker.render import Renderer
from worker.slot import Slot

logger = logging.getLogger("flux2.worker")


@dataclass(frozen=True)
class Worker:
    """Everything an item needs, opened once at start."""

    settings: Settings
    ledger: Ledger
    store: ObjectStore
    celery: Celery
    renderer: Renderer
    slot: Slot

    def requeue(self, claim: Claim) -> None:
        """Hand the running item to another worker, without counting the attempt; for a shutdown that cannot wait."""
        if self.ledger.release(claim, "drain") == "queued":
            wake(self.celery, claim.spec.pool, count=1)


def register(worker: Worker) -> None:
    """Make the wake-up task run this worker's next item."""

    @worker.celery.task(name=WAKE)  # type: ignore[untyped-decorator]
    def next_item() -> None:
        run_next(worker)


def run_next(worker: Worker) -> bool:
    """Run one item; False when there was none to run."""
    slot = worker.slot
    claim = worker.ledger.claim_next(slot.pools, slot=slot.name, boot=slot.boot, warm=worker.renderer.warm.adapter_key)
    if claim is None:
        return False
    where = {"item": claim.item_id, "fence": claim.fence, "attempt": claim.attempt}
    logger.info("item claimed", extra={**where, "queued_s": claim.queued_s})
    with worker.slot.running(claim), Lease(worker.ledger, claim, worker.settings.queue) as lease:
        try:
            result = _produce(worker, claim, lease)
        except LeaseLost as error:
            logger.warning("item abandoned", extra={**where, "error": str(error)})
            _discard(worker, claim)
        except ItemCanceled:
            _commit(worker, claim, None)
            _discard(worker, claim)
        except Flux2Error as error:
            _fail(worker, claim, error)
        except Exception as error:
            _fail(worker, claim, RunError(f"{type(error).__name__}: {error}"))
            raise
        else:
            _commit(worker, claim, result)
    return True


def _produce(worker: Worker, claim: Claim, lease: Lease) -> ItemResult:
    """Render one item and store its image under this claim's own prefix."""
    spec = claim.spec
    paths = [locate(ref.path, root=worker.settings.adapters.root) for ref in spec.adapters]
    rendered = worker.renderer.render(spec, paths, on_progress=lease.report)
    worker.slot.report_drift(worker.renderer.warm.base_drift)

    started = time.perf_counter()
    parameters = {
        **spec.model_dump(mode="json"),
        "request_id": claim.job_id,
        "index": claim.index,
        "pipeline": rendered.pipeline.model_dump(mode="json"),
    }
    data = imagefile.encode(rendered.image, spec.output_format, parameters)
    encoded = time.perf_counter()

    lease.report(Progress(stage="upload", step=spec.num_inference_steps, steps=spec.num_inference_steps))
    key = f"{_folder(claim)}/image.{spec.output_format}"
    content_type = imagefile.content_type(spec.output_format)
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


def _fail(worker: Worker, claim: Claim, error: Flux2Error) -> None:
    """End the item, or hand it to another attempt if another may fare better."""
    why = ItemError(code=error.code, message=str(error), retryable=error.retryable)
    logger.error(
        "item failed", exc_info=error, extra={"item": claim.item_id, "attempt": claim.attempt, "code": error.code}
    )
    if isinstance(error, RequestError) or not error.retryable:
        _commit(worker, claim, why)
    elif _while_redis_is_away(worker)(worker.ledger.release, claim, "retry", why) == "queued":
        wake(worker.celery, claim.spec.pool, count=1)


def _commit(worker: Worker, claim: Claim, outcome: ItemResult | ItemError | None) -> None:
    """End the item; what this claim stored is removed when it did not become the result."""
    answer = _while_redis_is_away(worker)(worker.ledger.commit, claim, outcome)
    logger.info("item ended", extra={"item": claim.item_id, "fence": claim.fence, "commit": answer})
    if isinstance(outcome, ItemResult) and answer in ("canceled", "stale"):
        _discard(worker, claim)


def _discard(worker: Worker, claim: Claim) -> None:
    """Remove what this claim may have stored, since no result will name it; the storage's lifecycle finds the rest."""
    try:
        worker.store.delete_prefix(_folder(claim))
    except StorageUnavailable as error:
        logger.warning("an unused image stays", extra={"folder": _folder(claim), "error": str(error)})


def _while_redis_is_away(worker: Worker) -> tenacity.Retrying:
    """Repeat a write for as long as the lease could still be ours; the fence makes a late one harmless."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(LedgerUnavailable),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_delay(worker.settings.queue.lease_ttl_s),
        reraise=True,
    )


def _folder(claim: Claim) -> str:
    """Where this claim's objects go: no other item, and no other claim of this one, writes there."""
    return f"results/{claim.job_id}/{claim.index}/{claim.fence}"
