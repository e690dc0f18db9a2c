"""Decide whether jobs may be stored in the compact form, which processes of an earlier version cannot read."""

from __future__ import annotations

from typing import Final

from shared.ledger import keys
from shared.ledger.session import Session, to_ms

#: Seconds from the first accept of this version until jobs are stored in the compact form. An API of the earlier
#: version shows a finished job in that form without its images, so all API processes must have been replaced by then.
UPGRADE_S: Final = 3600.0


class CompactForm:
    """The time from which this version stores jobs in the compact form; one Redis has one such time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start_ms: int | None = None
        self._is_due = False

    def is_due(self) -> bool:
        """Return whether the time has come."""
        # Remembered, which saves each later accept a call for the clock.
        if not self._is_due:
            start_ms = self.start_ms()
            self._is_due = self._session.now_ms() >= start_ms
        return self._is_due

    def start_ms(self) -> int:
        """Return the time from which jobs are stored in the compact form, in ms since the epoch.

        `accept.lua` stores it with the first job of this version.
        """
        if self._start_ms is None:
            redis = self._session.redis
            with self._session.commands():
                stored = redis.get(keys.COMPACT_FROM)
                # A Redis that never held a job has no processes of an earlier version.
                wait_s = UPGRADE_S if redis.exists(keys.SEQUENCE) else 0
            if stored is None:
                return self._session.now_ms() + to_ms(wait_s)
            self._start_ms = int(str(stored))
        return self._start_ms
