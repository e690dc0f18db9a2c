"""The loop that no job depends on a single process for: reap, audit, sweep.

Every API process and every worker runs one. Reaping is safe in many places at once (an item leaves the leases once);
the audit and the sweep have a leader.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable

from celery import Celery

from shared.celery_app import wake
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger
from shared.settings import QueueSettings

logger = logging.getLogger("flux2.caretaker")

# Wake-ups sent in one audit: enough to keep any fleet busy until the next.
_WAKES_PER_AUDIT = 1000


class Caretaker(threading.Thread):
    """Reaps each `reap_s`; audits and sweeps each `audit_s` while it leads.

    Args:
        pools: whose queues are audited.
    """

    def __init__(self, ledger: Ledger, celery: Celery, settings: QueueSettings, pools: Iterable[str]) -> None:
        super().__init__(name="flux2-caretaker", daemon=True)
        self._ledger = ledger
        self._celery = celery
        self._settings = settings
        self._pools = tuple(pools)
        self._holder = uuid.uuid4().hex
        self._stopped = threading.Event()
        self._missing: dict[str, int] = {}

    def run(self) -> None:
        passes_per_audit = max(1, round(self._settings.audit_s / self._settings.reap_s))
        passes = 0
        while not self._stopped.wait(self._settings.reap_s):
            passes += 1
            try:
                self.reap()
                if passes % passes_per_audit == 0 and self._ledger.lead_audit(self._holder):
                    self.audit()
                    self._ledger.sweep()
            except LedgerUnavailable as error:
                # Redis is away; its return is the only thing to wait for.
                logger.warning("caretaker waits for Redis", extra={"error": str(error)})

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def reap(self) -> None:
        """Take back expired leases and wake workers for what was requeued."""
        reaped = self._ledger.reap()
        for pool, count in reaped.requeued.items():
            logger.warning("leases expired", extra={"pool": pool, "requeued": count})
            wake(self._celery, pool, count=count)
        if reaped.ended:
            logger.error("items ended without a worker", extra={"items": list(reaped.ended)})

    def audit(self) -> None:
        """Send wake-ups that were missing in two passes running: one pass may see a claim half way."""
        for pool in self._pools:
            missing = self._ledger.missing_wakes(pool)
            resend = min(missing, self._missing.get(pool, 0), _WAKES_PER_AUDIT)
            self._missing[pool] = missing - resend
            if resend:
                logger.warning("wake-ups sent again", extra={"pool": pool, "count": resend})
                wake(self._celery, pool, count=resend)
