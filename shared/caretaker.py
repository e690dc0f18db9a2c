"""The loop that no job depends on a single process for: reap, audit, sweep.

Every API process and every worker runs one. Reaping is safe in many places at once (an item leaves the leases once);
the audit and the sweep have a leader.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from celery import Celery

from shared.catalog import POOLS
from shared.celery_app import wake
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger
from shared.settings import QueueSettings

logger = logging.getLogger("flux2.caretaker")

# Wake-ups sent in one audit: enough to keep any fleet busy until the next.
_WAKES_PER_AUDIT = 1000
# A spare wake-up costs a look at the queue. These 93 kB of them a pool are left, for claims and cancels under way.
_SPARE_WAKES = 100
# Redis does nothing else meanwhile, for some 6 ms.
_DROPS_PER_AUDIT = 50_000


class Caretaker(threading.Thread):
    """Reaps each `reap_s`; audits and sweeps each `audit_s` while it leads.

    Whoever leads audits every pool: nobody else looks after those that no worker serves.
    """

    def __init__(self, ledger: Ledger, celery: Celery, settings: QueueSettings) -> None:
        super().__init__(name="flux2-caretaker", daemon=True)
        self._ledger = ledger
        self._celery = celery
        self._settings = settings
        self._holder = uuid.uuid4().hex
        self._stopped = threading.Event()
        self._spare: dict[str, int] = {}

    def run(self) -> None:
        passes_per_audit = max(1, round(self._settings.audit_s / self._settings.reap_s))
        passes = 0
        while not self._stopped.wait(self._settings.reap_s):
            passes += 1
            self._attend(self.reap, *([self._lead] if passes % passes_per_audit == 0 else []))

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def _attend(self, *duties: Callable[[], object]) -> None:
        """Do each; what one of them meets ends neither the thread nor the others, and the next pass tries again."""
        for duty in duties:
            try:
                duty()
            except LedgerUnavailable as error:
                # Redis is away; its return is the only thing to wait for.
                logger.warning("caretaker waits for Redis", extra={"error": str(error)})
                return
            except Exception:
                logger.exception("caretaker failed", extra={"duty": duty.__name__})

    def _lead(self) -> None:
        if self._ledger.wakeups.lead_audit(self._holder):
            self._attend(self.audit, self._ledger.sweep)

    def reap(self) -> None:
        """Take back expired leases and wake workers for what was requeued."""
        reaped = self._ledger.reap()
        for pool, count in reaped.requeued.items():
            logger.warning("leases expired", extra={"pool": pool, "requeued": count})
            wake(self._celery, pool, count=count)
        if reaped.ended:
            logger.error("items ended without a worker", extra={"items": list(reaped.ended)})

    def audit(self) -> None:
        """Make up for wake-ups that were missing, or too many, in two passes running: one may see a claim half way."""
        for pool in POOLS:
            spare, before = self._ledger.wakeups.surplus(pool), self._spare.get(pool, 0)
            resend = min(-spare, -before, _WAKES_PER_AUDIT)
            excess = min(spare, before) - _SPARE_WAKES
            if resend > 0:
                logger.warning("wake-ups sent again", extra={"pool": pool, "count": resend})
                wake(self._celery, pool, count=resend)
                spare += resend
            elif excess > 0:
                dropped = self._ledger.wakeups.drop_surplus(
                    pool, keep=_SPARE_WAKES, limit=min(excess, _DROPS_PER_AUDIT)
                )
                logger.info("spare wake-ups dropped", extra={"pool": pool, "count": dropped})
                spare -= dropped
            self._spare[pool] = spare
