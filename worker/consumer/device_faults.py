"""Keep a slot whose device fails repeatedly from claiming work.

A CUDA error such as an illegal access is sticky: every later call of the process fails. The process then ends and its
supervisor starts it again. This module counts these faults in the ledger, across processes.
"""

from __future__ import annotations

import logging
import queue

from shared.errors import Flux2Error, LedgerUnavailable
from shared.ledger import Claim, Ledger
from worker.consumer.worker import Worker

logger = logging.getLogger("flux2.worker.consumer.device")

# A device that fails on this many different items within the window is bad; a single item may be at fault itself.
FAULTS = 2
WINDOW_S = 600.0
_POLL_S = 5.0


def record_fault(worker: Worker, claim: Claim, error: Flux2Error) -> None:
    """Store the fault in the ledger, where the next process of this slot reads it."""
    slot = worker.slot.name
    logger.critical("device fault", extra={"slot": slot, "item": claim.item_id, "error": str(error)})
    try:
        worker.ledger.workers.record_fault(slot, claim.item_id, window_s=WINDOW_S)
    except LedgerUnavailable as unavailable:
        logger.warning("device fault not recorded", extra={"slot": slot, "error": str(unavailable)})


def is_faulty(ledger: Ledger, slot: str) -> bool:
    """Return whether the slot's device failed too often to render another item."""
    return ledger.workers.count_faults(slot, window_s=WINDOW_S) >= FAULTS


def wait_until_trusted(worker: Worker, stop_signals: queue.SimpleQueue[int]) -> bool:
    """Block while the slot's device is faulty, until its faults are `WINDOW_S` old; return False after a stop signal.

    Raises:
        LedgerUnavailable: Redis did not answer; call this again to continue waiting.
    """
    # A signal may have arrived during an earlier call that Redis did not answer.
    if not stop_signals.empty():
        return False
    while is_faulty(worker.ledger, worker.slot.name):
        if worker.state.change_condition("faulty"):
            worker.heartbeat.start()
            logger.critical("slot takes no work: its device failed repeatedly", extra={"slot": worker.slot.name})
        try:
            stop_signals.get(timeout=_POLL_S)
        except queue.Empty:
            continue  # Redis' clock decides when the faults expire, so read them again
        return False
    worker.state.change_condition("ready")
    return True
