"""Count the wake-up messages that wait in Redis, and elect the process that audits them.

Celery sends and consumes the messages; the ledger only compares their number with that of the queued items.
"""

from __future__ import annotations

from shared.ledger import keys
from shared.ledger.session import Session, to_ms


class WakeupQueues:
    """The queues of wake-up messages in one Redis, one for each pool."""

    def __init__(self, session: Session, *, audit_s: float) -> None:
        self._session = session
        # Two periods, so that a leader that is a little late stays the leader.
        self._leadership_ms = to_ms(2 * audit_s)

    def count(self, pool: str) -> int:
        """Count the wake-ups that no worker has consumed yet."""
        with self._session.commands():
            return int(self._session.redis.llen(keys.wake_list(pool)))

    def surplus(self, pool: str) -> int:
        """Return how many more wake-ups than queued items there are; below 0 when some are missing."""
        # One transaction, so that an accept between the two reads cannot distort the difference.
        with self._session.commands(), self._session.redis.pipeline(transaction=True) as pipe:
            pipe.zcard(keys.pending(pool))
            pipe.llen(keys.wake_list(pool))
            queued, messages = pipe.execute()
        return int(messages) - int(queued)

    def drop_surplus(self, pool: str, *, keep: int, limit: int) -> int:
        """Drop wake-ups beyond the queued items, all but `keep` of them and at most `limit`; return how many."""
        return int(self._session.run("drop_wakeups", pool=pool, keep=keep, limit=limit))

    def try_lead_audit(self, holder: str) -> bool:
        """Try to become or stay the leader; return whether `holder` leads for the next two audit periods."""
        redis = self._session.redis
        with self._session.commands():
            if redis.set(keys.AUDIT_LEADER, holder, nx=True, px=self._leadership_ms):
                return True
            # A leader extends its term by calling again; another holder must wait until the term expires.
            if redis.get(keys.AUDIT_LEADER) != holder:
                return False
            redis.pexpire(keys.AUDIT_LEADER, self._leadership_ms)
            return True
