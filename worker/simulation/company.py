"""Keep simulated slots and slots that render apart: they claim the same items."""

from __future__ import annotations

from shared.errors import ServerFailed
from shared.ledger import Ledger
from worker.simulation import SIMULATED


def refuse_rendering_slots(ledger: Ledger) -> None:
    """Raise `ServerFailed` if a slot of this Redis renders, before a simulated one takes its jobs."""
    rendering = [slot.name for slot in ledger.workers.live_slots() if slot.device != SIMULATED]
    if rendering:
        raise ServerFailed(
            f"slot {rendering[0]} of this Redis renders, and a simulated slot would answer its jobs with pictures that "
            "no model drew; set FLUX2_REDIS_URL to another Redis or database"
        )


def refuse_simulated_slots(ledger: Ledger) -> None:
    """Raise `ServerFailed` if a slot of this Redis is simulated, before one that renders shares its jobs."""
    simulated = [slot.name for slot in ledger.workers.live_slots() if slot.device == SIMULATED]
    if simulated:
        raise ServerFailed(
            f"slot {simulated[0]} of this Redis is simulated and would answer jobs with pictures that no model drew; "
            "stop it, or set FLUX2_REDIS_URL to another Redis or database"
        )
