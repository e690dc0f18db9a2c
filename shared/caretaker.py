"""Keep jobs going when processes die: reap expired leases, audit wake-ups and forget old jobs.

Every API process and every worker runs a caretaker, so no job depends on a single process.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial

from celery import Celery

from shared.catalog import POOLS
from shared.celery_app import send_wakeups
from shared.errors import LedgerUnavailable
from shared.job import AUDIT_KINDS, AuditKind, audit_kind
from shared.ledger import Ledger
from shared.settings import QueueSettings

logger = logging.getLogger("flux2.caretaker")

# Wake-ups sent in one audit: enough to keep any fleet busy until the next.
_RESENDS_PER_AUDIT = 1000
# A surplus wake-up costs one look at the queue. Each pool keeps this many (93 kB), for claims and cancels in progress.
_SURPLUS_KEPT = 100
# So many caretakers pass in a period; in a larger fleet each worker's pauses for longer.
_PASSES_PER_PERIOD = 32
# Even if most of a fleet disappears at once, those that are left pass soon.
_LONGEST_PAUSE_S = 60.0
# Dropping this many blocks Redis for some 6 ms.
_DROPS_PER_AUDIT = 50_000


class Caretaker(threading.Thread):
    """Reaps and looks at deadlines each `reap_s`; audits and forgets old jobs each `audit_s` while it leads.

    The leader audits every pool, also those that no worker serves.

    Args:
        duties: what else this process does in each pass.
        is_of_slot: whether each slot has one. In a large fleet it then passes less often while it does not lead:
            10,000 that pass in every second would take three cores of Redis.
    """

    def __init__(
        self,
        ledger: Ledger,
        celery: Celery,
        settings: QueueSettings,
        *,
        duties: Sequence[Callable[[], object]] = (),
        is_of_slot: bool = False,
    ) -> None:
        super().__init__(name="flux2-caretaker", daemon=True)
        self._ledger = ledger
        self._celery = celery
        self._settings = settings
        self._duties = duties
        self._is_of_slot = is_of_slot
        # Slots of the fleet at the last pass, and whether this caretaker led at its last attempt.
        self._slots = 0
        self._leads = False
        # A caretaker's identity in the election of the leader.
        self._holder = uuid.uuid4().hex
        self._stopped = threading.Event()
        # Why Redis could not be used in the current pass, and whether that has been logged.
        self._outage: LedgerUnavailable | None = None
        self._is_waiting = False
        # Surplus of each queue of wake-ups at the previous audit.
        self._surplus: dict[str, int] = {}

    def run(self) -> None:
        # One thread and one clock for both periods, so that a reap and an audit never run at once.
        period_s, unaudited_s = self._settings.reap_period_s, 0.0
        while not self._stopped.wait(pause_s := self._pause_s(period_s)):
            unaudited_s += pause_s
            self._outage = None
            # Half a period for what the sum of many pauses rounds.
            is_due = unaudited_s + period_s / 2 >= self._settings.audit_s
            if is_due:
                unaudited_s = 0.0
            self._perform(self.reap, self.expire_deadlines, *([self._lead] if is_due else []), *self._duties)
            self._log_outage()

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def _pause_s(self, period_s: float) -> float:
        """Return the seconds until the next pass."""
        if self._leads or not self._is_of_slot or self._slots <= _PASSES_PER_PERIOD:
            return period_s
        # At random, so that workers that started together do not pass together.
        return min(period_s * self._slots / _PASSES_PER_PERIOD, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)

    def _perform(self, *duties: Callable[[], object]) -> None:
        """Perform each duty; log errors."""
        # An error ends neither the thread nor the other duties, and the next pass tries again.
        for duty in duties:
            try:
                duty()
            except LedgerUnavailable as error:
                # The other duties would only wait for the same timeout.
                self._outage = error
                return
            except Exception:
                logger.exception("caretaker failed", extra={"duty": getattr(duty, "func", duty).__name__})

    def _log_outage(self) -> None:
        """Log the beginning and the end of an outage of Redis, which many passes see."""
        if self._outage is not None and not self._is_waiting:
            logger.warning("caretaker waits for Redis", extra={"error": str(self._outage)})
        elif self._outage is None and self._is_waiting:
            logger.info("caretaker reaches Redis again")
        self._is_waiting = self._outage is not None

    def _lead(self) -> None:
        # One leader: two audits at once would both send the wake-ups that are missing.
        self._leads = self._ledger.wakeups.try_lead_audit(self._holder)
        if self._leads:
            self._perform(self.audit, self._ledger.forget_ended, self._ledger.index_tenants)
        for kind in AUDIT_KINDS[1:]:
            if self._ledger.wakeups.try_lead_audit(self._holder, kind):
                self._leads = True
                self._perform(partial(self.audit, kind))

    def reap(self) -> None:
        """Requeue the items whose lease expired and wake workers for them."""
        # Without a leader: an item leaves the leases only once, even if many caretakers reap at the same time.
        reaped = self._ledger.reap()
        self._slots = reaped.slots
        if reaped.grace:
            logger.warning("leases extended: Redis restarted, stalled or was unreachable, or its clock was set")
        for pool, count in reaped.requeued.items():
            logger.warning("leases expired", extra={"pool": pool, "requeued": count})
            name = self._ledger.wakeups.name(pool)
            if name is not None:
                send_wakeups(self._celery, name, count=count)
        # These were canceled or out of attempts, and no worker is left that could report it.
        if reaped.ended:
            logger.error("items ended without a worker", extra={"items": list(reaped.ended)})

    def expire_deadlines(self) -> None:
        """Cancel the items that have not started before their job's deadline."""
        canceled = self._ledger.expire_deadlines()
        if canceled:
            logger.warning(
                "items canceled: their deadline passed while they waited for a worker", extra={"items": canceled}
            )

    def audit(self, kind: AuditKind = "plain") -> None:
        """Send missing wake-ups and drop surplus ones that two consecutive audits of the same pools see."""
        for pool in POOLS:
            if audit_kind(pool) != kind:
                continue
            # The largest live slots of a pool of large items change, and their queue of wake-ups with them.
            name = self._ledger.wakeups.name(pool)
            if name is None:
                continue
            surplus, before = self._ledger.wakeups.surplus(pool, name), self._surplus.get(name, 0)
            # Two audits must agree: a single one may see a claim half way, its wake-up consumed and its item queued.
            missing = min(-surplus, -before, _RESENDS_PER_AUDIT)
            excess = min(surplus, before) - _SURPLUS_KEPT
            if missing > 0:
                logger.warning("wake-ups sent again", extra={"pool": pool, "count": missing})
                send_wakeups(self._celery, name, count=missing)
                surplus += missing
            elif excess > 0:
                dropped = self._ledger.wakeups.drop_surplus(
                    pool, name, keep=_SURPLUS_KEPT, limit=min(excess, _DROPS_PER_AUDIT)
                )
                logger.info("surplus wake-ups dropped", extra={"pool": pool, "count": dropped})
                surplus -= dropped
            self._surplus[name] = surplus
