"""Count the wake-up messages that wait in Redis, and elect the process that audits them.

Celery sends and consumes the messages; the ledger only compares their number with that of the queued items.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.job import AuditKind, is_large, wake_name
from shared.ledger import keys
from shared.ledger.session import Session, to_ms
from shared.ledger.workers import SLOT_TTL_MS

_LEADERS: Final[dict[AuditKind, str]] = {
    "plain": keys.AUDIT_LEADER,
    "large": keys.LARGE_AUDIT_LEADER,
    "references": keys.REFERENCES_AUDIT_LEADER,
    "sigmas": keys.SIGMAS_AUDIT_LEADER,
}


class WakeupQueues:
    """The queues of wake-up messages in one Redis.

    Each pool has one, which the pool names. A pool of large items has one for each size of memory, and the queue of the
    largest live slots is in use.
    """

    def __init__(self, session: Session, *, audit_s: float) -> None:
        self._session = session
        # Two periods, so that a leader that is a little late stays the leader.
        self._leadership_ms = to_ms(2 * audit_s)

    def name(self, pool: str) -> str | None:
        """Return the name of the queue whose slots may claim a pool's items now; None if no live slot may."""
        if not is_large(pool):
            return pool
        largest = self._session.run("largest", pool=pool, slot_ttl_ms=SLOT_TTL_MS)
        return None if largest is None else wake_name(pool, int(largest))

    def count(self, name: str) -> int:
        """Count the wake-ups of a queue that no worker has consumed yet."""
        with self._session.commands():
            return int(self._session.redis.llen(keys.wake_list(name)))

    def any_waiting(self, names: Iterable[str]) -> bool:
        """Return whether any of these queues has a wake-up that no worker has consumed yet."""
        with self._session.commands():
            # Redis has no empty lists. One command, because every idle worker asks.
            return bool(self._session.redis.exists(*(keys.wake_list(name) for name in names)))

    def surplus(self, pool: str, name: str | None = None) -> int:
        """Return how many more wake-ups than queued items there are; below 0 when some are missing.

        Args:
            name: of the pool's queue, if it is another than the pool's.
        """
        # One transaction, so that an accept between the two reads cannot distort the difference.
        with self._session.commands(), self._session.redis.pipeline(transaction=True) as pipe:
            pipe.zcard(keys.pending(pool))
            pipe.llen(keys.wake_list(name or pool))
            queued, messages = pipe.execute()
        return int(messages) - int(queued)

    def drop_surplus(self, pool: str, name: str | None = None, *, keep: int, limit: int) -> int:
        """Drop wake-ups beyond the queued items, all but `keep` of them and at most `limit`; return how many."""
        return int(self._session.run("drop_wakeups", pool=pool, name=name or pool, keep=keep, limit=limit))

    def try_lead_audit(self, holder: str, kind: AuditKind = "plain") -> bool:
        """Try to become or stay the leader; return whether `holder` leads for the next two audit periods.

        Args:
            kind: the pools to audit. Each kind is led apart, because a leader of an earlier version knows fewer.
        """
        redis, key = self._session.redis, _LEADERS[kind]
        with self._session.commands():
            if redis.set(key, holder, nx=True, px=self._leadership_ms):
                return True
            # A leader extends its term by calling again; another holder must wait until the term expires.
            if redis.get(key) != holder:
                return False
            redis.pexpire(key, self._leadership_ms)
            return True
