"""Hand an item's lease over from the thread that renders it to the thread that stores its image."""

from __future__ import annotations

import threading
from enum import Enum

from shared.ledger import Claim
from worker.consumer.lease import Lease
from worker.consumer.worker_state import WorkerState


class Owner(Enum):
    """The thread that must end the lease."""

    RENDERING = "rendering thread"
    STORING = "storing thread"


class Custody:
    """The lease of one claim and its entry in the worker's state, which begin and end together.

    States: new -> owned by `Owner.RENDERING` -> owned by `Owner.STORING` -> closed; the rendering thread closes it
    itself if it has nothing to store. Closing is safe to repeat, and does nothing for a thread that is not the owner.
    """

    def __init__(self, claim: Claim, *, lease: Lease, state: WorkerState) -> None:
        self._claim = claim
        self._lease = lease
        self._state = state
        self._lock = threading.Lock()
        self._owner: Owner | None = None

    def open(self) -> None:
        """Show the claim in the worker's state and begin to renew its lease, for the rendering thread."""
        self._state.add_claim(self._claim)
        try:
            self._lease.start()
        except RuntimeError:  # no thread could be started
            # Otherwise heartbeats would report an item that nobody renews.
            self._state.remove_claim(self._claim)
            raise
        with self._lock:
            self._owner = Owner.RENDERING

    def pass_to_storing(self) -> None:
        """Make the storing thread the owner; the rendering thread may claim another item."""
        with self._lock:
            if self._owner is not Owner.RENDERING:
                raise RuntimeError(f"{self._claim.item_id}: the rendering thread does not own the lease")
            self._owner = Owner.STORING
        self._state.finish_rendering(self._claim)

    def close(self, owner: Owner) -> None:
        """Stop renewing the lease and remove the claim from the worker's state, if `owner` owns them."""
        with self._lock:
            if self._owner is not owner:
                return
            self._owner = None
        # Outside the lock: joining the lease's thread may wait for a silent Redis.
        self._lease.close()
        self._state.remove_claim(self._claim)
