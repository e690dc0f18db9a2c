"""When a client should ask again: what `Retry-After` says about a job that has not ended."""

from __future__ import annotations

from shared.errors import LedgerUnavailable
from shared.ledger import Ledger

_SHORTEST_S, _LONGEST_S = 1, 30
# Of the time that a job has left, by which its end may be noticed late.
_PART_OF_ETA = 0.1


def poll_after_s(eta_s: float | None) -> int:
    """Return the seconds until the next poll of a job: a tenth of what it has left, 1 to 30; 1 if that is unknown."""
    return _SHORTEST_S if eta_s is None else min(max(round(_PART_OF_ETA * eta_s), _SHORTEST_S), _LONGEST_S)


def first_poll_after_s(ledger: Ledger, job_id: str, *, images: int) -> int:
    """Return the seconds until the first poll of a job that was accepted just now."""
    try:
        return poll_after_s(ledger.outlook(job_id, items=images).eta_s)
    except LedgerUnavailable:
        # The job is accepted in any case.
        return _SHORTEST_S
