"""End a worker process while its other threads still run; no other module does that.

Python cannot interrupt a hung kernel or a wait for a silent server: only the exit of the process ends them.
"""

from __future__ import annotations

import logging
from typing import NoReturn

from shared.errors import Flux2Error, LedgerUnavailable
from shared.ledger import Claim
from shared.metrics.definitions import WORKER_ENDS
from shared.metrics.tally import PROCESS
from worker.consumer.worker import Worker

logger = logging.getLogger("flux2.worker.consumer")

EXIT_DRAINED = 0
#: Exit status that asks the supervisor for a new process: EX_SOFTWARE in sysexits.h.
EXIT_FAULT = 70


def end_process(
    worker: Worker, status: int, *, reason: str, failed: tuple[Claim, Flux2Error] | None = None
) -> NoReturn:
    """Return every item to the queue, remove the slot from the live ones and exit; any thread may call this.

    Args:
        reason: text for the log.
        failed: an item whose attempt counts, with its error; the attempts of all other items do not count.
    """
    level = logging.WARNING if status == EXIT_DRAINED else logging.CRITICAL
    logger.log(level, "process ends", extra={"slot": worker.slot.name, "status": status, "reason": reason})
    PROCESS.count(WORKER_ENDS, "drain_timeout" if status == EXIT_DRAINED else "fault")
    # The main thread may be about to claim another item.
    worker.state.start_draining()
    try:
        if failed is not None:
            worker.retry(*failed)
        _requeue_claims(worker, done=[failed[0]] if failed else [])
        worker.heartbeat.withdraw()
    except LedgerUnavailable as error:
        # The reaper requeues them when their leases expire; waiting here would keep the device from the next process.
        logger.warning("items must wait until their leases expire", extra={"error": str(error)})
    finally:
        worker.exit_process(status)


def _requeue_claims(worker: Worker, *, done: list[Claim]) -> None:
    # Repeated: a claim that began before the drain may arrive while others are requeued.
    while claims := [claim for claim in worker.state.claims if claim not in done]:
        for claim in claims:
            logger.warning("item handed over", extra={"item": claim.item_id})
            worker.requeue(claim)
        done += claims
