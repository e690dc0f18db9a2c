"""Keep simulated slots and slots that render apart: they claim the same items."""

from __future__ import annotations

from shared.errors import ServerFailed
from shared.ledger import Ledger
from worker.simulation import SIMULATED


def refuse_rendering_slots(ledger: Ledger) -> None:
    """Raise `ServerFailed` if a slot of this Redis renders, before a simulated one takes its jobs."""
    if any(kind.precision != SIMULATED for kind in ledger.slot_kinds.count()):
        raise ServerFailed(
            "workers of this Redis render, and a simulated slot would answer their jobs with pictures that no model "
            "drew; set FLUX2_REDIS_URL to another Redis or database"
        )


def refuse_simulated_slots(ledger: Ledger) -> None:
    """Raise `ServerFailed` if a slot of this Redis is simulated, before one that renders shares its jobs."""
    if any(kind.precision == SIMULATED for kind in ledger.slot_kinds.count()):
        raise ServerFailed(
            "slots of this Redis are simulated and would answer jobs with pictures that no model drew; stop them, or "
            "set FLUX2_REDIS_URL to another Redis or database"
        )
