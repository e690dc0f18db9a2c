"""Wait for the end of jobs on behalf of calls: one read of Redis at a time for all of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from anyio import CapacityLimiter, to_thread

from shared.errors import LedgerUnavailable
from shared.ledger import Ledger

logger = logging.getLogger("flux2.api.waits")

# 500 waiting jobs cost Redis 0.5 ms for each read.
_POLL_S = 0.2
#: Places for calls that wait in one process, and those of one tenant; calls without a place are answered at once.
PLACES: Final = 500
PLACES_OF_TENANT: Final = 250
# A waiting call holds a connection, and its body until it is answered: as text, as JSON and as a request.
_BYTES_PER_PLACE: Final = 256 * 1024
# How soon a caller that has gone, or the end of the process, is noticed.
_LOOK_S = 1.0


def places_for(body_bytes: int) -> int:
    """Return the number of places that a call with a body of this size takes."""
    return 1 + body_bytes // _BYTES_PER_PLACE


class JobWaits:
    """The calls of this process that wait for jobs. Only the event loop uses it.

    Attributes:
        is_stopping: whether the process is about to end; waits then end too.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # Events of the waiting calls, by job.
        self._waiting: dict[str, set[asyncio.Event]] = {}
        # Places that are taken, by tenant.
        self._taken: Counter[str] = Counter()
        self._poller: asyncio.Task[None] | None = None
        # Reads must not wait for one of the threads that answer other calls.
        self._limiter = CapacityLimiter(1)
        self.is_stopping: Callable[[], bool] = lambda: False

    def has_room(self, tenant: str, *, places: int) -> bool:
        """Return whether a call of a tenant may wait."""
        return self._taken.total() + places <= PLACES and self._taken[tenant] + places <= PLACES_OF_TENANT

    async def wait(
        self, job_id: str, *, tenant: str, places: int, timeout_s: float, has_left: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Return True when the job has ended; False after `timeout_s`, or if nobody waits for the answer any more.

        Args:
            tenant: of the call, for which `has_room` was true just before.
            has_left: whether the caller has closed its connection.
        """
        ended = asyncio.Event()
        self._taken[tenant] += places
        self._waiting.setdefault(job_id, set()).add(ended)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            until = time.monotonic() + timeout_s
            while not ended.is_set() and (left_s := until - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(ended.wait(), min(left_s, _LOOK_S))
                except TimeoutError:
                    if self.is_stopping() or await has_left():
                        return False
            return ended.is_set()
        finally:
            self._taken[tenant] -= places
            if not self._taken[tenant]:
                del self._taken[tenant]
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _poll(self) -> None:
        while self._waiting:
            for job_id in await self._find_ended(list(self._waiting)):
                for ended in self._waiting.get(job_id, ()):
                    ended.set()
            await asyncio.sleep(_POLL_S)

    async def _find_ended(self, job_ids: list[str]) -> set[str]:
        try:
            return await to_thread.run_sync(self._ledger.find_ended, job_ids, limiter=self._limiter)
        except LedgerUnavailable:
            # The calls go on waiting: Redis may be back in time.
            return set()
        except Exception:
            # A defect must not end the polls: every call would wait in vain.
            logger.exception("ended jobs cannot be read; the next poll tries again")
            return set()
