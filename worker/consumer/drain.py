"""What SIGTERM means: take nothing more, finish what runs or hand it over, and be gone in time."""

from __future__ import annotations

import logging
import threading

from shared.errors import LedgerUnavailable
from worker.consumer.item_run import Worker

logger = logging.getLogger("flux2.worker.drain")

# What Celery may need to close its connections once nothing runs.
_CLOSE_S = 5.0
_LOOK_S = 0.1


def drain(worker: Worker) -> None:
    """Begin the drain; called in a signal handler, so nothing here waits.

    Celery stops taking wake-ups and ends the process when the running item is done. An item that is not within
    `drain_s` is handed over, without counting the attempt, and the process ends where it stands.
    """
    worker.slot.draining.set()
    threading.Thread(target=_see_to_the_end, args=[worker], name="flux2-drain", daemon=True).start()


def _see_to_the_end(worker: Worker) -> None:
    threading.Event().wait(worker.settings.worker.drain_s)
    looks = round(_CLOSE_S / _LOOK_S)
    # A wake-up that was under way at the signal may still have claimed an item; an idle process closes by itself.
    while not worker.slot.claims and looks:
        threading.Event().wait(_LOOK_S)
        looks -= 1
    try:
        for claim in list(worker.slot.claims):
            logger.warning("item handed over", extra={"item": claim.item_id})
            worker.hand_over(claim)
        worker.ledger.workers.remove(worker.slot.name)
    except LedgerUnavailable as error:
        logger.warning("the lease must run out", extra={"error": str(error)})
    finally:
        # The main thread is inside a kernel that nothing can interrupt, or waits for a server that does not answer.
        worker.end(0)
