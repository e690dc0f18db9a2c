"""Ends a process that can render nothing more, and keeps a slot whose device fails again and again from taking work.

A CUDA error such as an illegal access is sticky: every later call of the process fails. A kernel that hangs cannot be
interrupted. In both cases the item goes to another attempt and the process ends with a status that its supervisor
starts again; what the text of an error says decides nothing, only the probe does.
"""

from __future__ import annotations

import logging
import threading

from shared.errors import Flux2Error, LedgerUnavailable
from shared.ledger import Claim, Ledger
from worker.consumer.heartbeat import Slot

logger = logging.getLogger("flux2.worker.fault")

#: Exit status of a process that must be started again: EX_SOFTWARE in sysexits.h.
EXIT_FAULT = 70

# A device that fails on this many different items within the window is bad; one item alone may be at fault itself.
FAULTS = 2
WINDOW_S = 600.0
_LOOK_S = 5.0


def note(ledger: Ledger, slot: Slot, claim: Claim, error: Flux2Error) -> None:
    """Remember the fault where the next process of this slot finds it."""
    logger.critical("device fault", extra={"slot": slot.name, "item": claim.item_id, "error": str(error)})
    try:
        ledger.workers.record_fault(slot.name, claim.item_id, window_s=WINDOW_S)
    except LedgerUnavailable as unavailable:
        logger.warning("fault not noted", extra={"slot": slot.name, "error": str(unavailable)})


def is_faulty(ledger: Ledger, slot: str) -> bool:
    """Whether the slot's device failed too often to be given work."""
    return ledger.workers.count_faults(slot, window_s=WINDOW_S) >= FAULTS


def wait_until_trusted(ledger: Ledger, slot: Slot, stopped: threading.Event) -> bool:
    """Hold a process of a bad device back until its faults are forgotten; False when `stopped` was set meanwhile."""
    while is_faulty(ledger, slot.name):
        if slot.report_state("faulty"):
            logger.critical("slot takes no work: its device failed repeatedly", extra={"slot": slot.name})
        if stopped.wait(_LOOK_S):
            return False
    slot.report_state("ready")
    return True
