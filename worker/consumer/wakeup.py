"""Answer a wake-up: claim the best item for this slot and run it."""

from __future__ import annotations

import logging
import time

from shared.celery_app import WAKE_TASK
from shared.errors import LedgerUnavailable, StorageOutageReported
from shared.ledger import Claim
from shared.log_context import item_context
from worker.consumer import storage_outage
from worker.consumer.item_metrics import observe_claim
from worker.consumer.item_run import ItemRun
from worker.consumer.worker import Worker, redis_retries

logger = logging.getLogger("flux2.worker.consumer")

# Pause between repeats of a claim that Redis did not answer.
_REPEAT_S = 0.5


def register_wakeup_task(worker: Worker) -> None:
    """Make Celery's wake-up task run this worker's next item."""

    @worker.celery.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]
    def next_item() -> None:
        run_next(worker)


def run_next(worker: Worker) -> bool:
    """Run one item; return False if none is queued, or if the worker may claim none now."""
    with worker.state.handling_wakeup():
        # An item that is not claimed now is not lost: the audit sends a new wake-up for each queued item.
        if worker.state.is_draining or not storage_outage.may_claim(worker):
            return False
        began = time.monotonic()
        if (claim := _claim(worker)) is None:
            return False
        with item_context(claim.item_id, traceparent=claim.trace):
            return _run(worker, claim, claim_s=time.monotonic() - began)


def _run(worker: Worker, claim: Claim, *, claim_s: float) -> bool:
    """Run an item, unless the worker drains; return whether it did."""
    observe_claim(claim)
    where = {"fence": claim.fence, "attempt": claim.attempt}
    logger.info("item claimed", extra={**where, "queued_s": claim.queued_s, "why": claim.why})
    if worker.state.is_draining:
        # SIGTERM came during the claim, which lasts as long as Redis is away.
        redis_retries(pause_s=_REPEAT_S)(worker.requeue, claim)
        return False
    ItemRun(worker, claim, claim_s=claim_s).run()
    return True


def _claim(worker: Worker) -> Claim | None:
    """Claim an item; while Redis does not answer, repeat the claim."""
    # Redis may have given the slot an item and lost the reply. Nobody else would run that item before its lease
    # expires, an attempt would be spent, and the wake-up that asked for it is used up.
    try:
        return redis_retries(pause_s=_REPEAT_S)(_claim_once, worker)
    except StorageOutageReported as outage:
        # Only now, so that a claim costs neither a probe nor a further call while the store answers everyone.
        return _claim(worker) if storage_outage.probe_after_report(worker, outage.outage_id) else None


def _claim_once(worker: Worker) -> Claim | None:
    slot, state = worker.slot, worker.state
    try:
        return worker.ledger.claim_next(
            slot.pools,
            slot=slot.name,
            boot=slot.boot,
            warm=worker.renderer.warm_key,
            probed_outage=state.probed_outage,
        )
    except LedgerUnavailable as error:
        logger.warning("claim not answered; it is repeated", extra={"error": str(error)})
        raise
