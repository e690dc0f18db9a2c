"""Notice that the object store is away, and let the whole fleet spend no GPU time until it answers.

The first worker that cannot store an image reports it in the ledger. A claim of another worker is then refused until
that worker has probed the store itself, because only some hosts may have lost it.
"""

from __future__ import annotations

import logging

from shared.errors import LedgerUnavailable, StorageUnavailable
from worker.consumer.worker import Worker

logger = logging.getLogger("flux2.worker.consumer")


def caused_failure(worker: Worker) -> bool:
    """Return whether the store is away, after it did not take an image; if so, report it to the other workers."""
    worker.state.record_storage_failure()
    if _answers(worker):
        return False
    _report(worker, is_new=True)
    return True


def may_claim(worker: Worker) -> bool:
    """Return whether the store took this worker's last image, or answers a probe now."""
    if not worker.state.storage_failed:
        return True
    if not _answers(worker):
        _report(worker, is_new=False)
        return False
    worker.state.record_storage_recovery()
    return True


def follow_report(worker: Worker, report: str) -> bool:
    """Probe the store after another worker's report; return whether this worker may claim."""
    if not _answers(worker):
        worker.state.record_storage_failure()
        return False
    worker.state.record_probed_report(report)
    return True


def _answers(worker: Worker) -> bool:
    try:
        worker.store.check()
    except StorageUnavailable as error:
        logger.warning("the store does not answer", extra={"error": str(error)})
        return False
    return True


def _report(worker: Worker, *, is_new: bool) -> None:
    try:
        worker.ledger.workers.report_store_away(is_new=is_new)
    except LedgerUnavailable as error:
        # It costs GPU time only: another worker finds out when it cannot store an image.
        logger.warning("outage of the store not reported", extra={"error": str(error)})
