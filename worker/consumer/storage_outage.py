"""Notice that the storage is away, and keep the whole fleet from spending GPU time until it answers.

The first worker that cannot store an image reports the outage in the ledger. From then on, another worker may only
claim after it has probed the storage itself, because only some hosts may have lost it.
"""

from __future__ import annotations

import logging

from shared.errors import LedgerUnavailable, StorageUnavailable
from shared.metrics.definitions import STORAGE_OUTAGES
from shared.metrics.tally import PROCESS
from worker.consumer.worker import Worker

logger = logging.getLogger("flux2.worker.consumer")


def detect(worker: Worker) -> bool:
    """Probe the storage after a failed upload; if the probe fails too, report an outage and return True."""
    worker.state.record_storage_failure()
    if _answers(worker):
        return False
    _report(worker, is_new=True)
    return True


def may_claim(worker: Worker) -> bool:
    """Return whether the storage took this worker's last image, or answers a probe now."""
    if not worker.state.storage_failed:
        return True
    if not _answers(worker):
        _report(worker, is_new=False)
        return False
    worker.state.record_storage_recovery()
    return True


def probe_after_report(worker: Worker, outage_id: str) -> bool:
    """Probe the storage after another worker reported an outage; return whether this worker may claim."""
    if not _answers(worker):
        worker.state.record_storage_failure()
        return False
    worker.state.record_probed_outage(outage_id)
    return True


def _answers(worker: Worker) -> bool:
    try:
        worker.store.check()
    except StorageUnavailable as error:
        logger.warning("the storage does not answer; no item is claimed until it does", extra={"error": str(error)})
        return False
    return True


def _report(worker: Worker, *, is_new: bool) -> None:
    if is_new:
        PROCESS.count(STORAGE_OUTAGES)
    try:
        worker.ledger.workers.report_storage_outage(is_new=is_new)
    except LedgerUnavailable as error:
        # It costs GPU time only: another worker finds out when it cannot store an image.
        logger.warning("outage of the storage not reported", extra={"error": str(error)})
