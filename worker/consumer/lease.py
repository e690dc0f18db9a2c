"""Renew the lease on one item in a thread, which also sends progress, learns of a cancel and notices a hung kernel.

The denoising loop calls `report` at each step. If the lease may have expired because Redis is away, `report` blocks
until Redis answers; after a short outage the work continues where it stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from shared.errors import ItemCanceled, LeaseLost, LedgerUnavailable
from shared.job import Progress
from shared.ledger import Claim, Ledger
from shared.log_context import in_this_context
from shared.settings import Settings

logger = logging.getLogger("flux2.worker.consumer.lease")

# New progress is sent at once if the last renewal is older: often enough for a person who watches, seldom for Redis.
_FRESH_S = 0.5
# In a larger fleet, less often: 10,000 slots with a step every 0.5 s would take four cores of Redis for progress alone.
_FRESH_SLOTS = 250
# A renewal that got no answer is repeated after this share of the period, and after `_REPEAT_S` at most: a lease that a
# stall of Redis has shortened must not wait a whole period more.
_REPEAT_SHARE = 1 / 3
_REPEAT_S = 1.0
# A thread that wakes this late was frozen with its whole process; waiting for a processor takes less.
_FROZEN_S = 1.0


class Lease:
    """Renews the lease on a claim each `renew_s` seconds between `start` and `close`; also a context manager.

    Args:
        on_stall: called once, from the renewing thread, when the item has made no progress for `stall_s`. It must end
            the process, because nothing else ends a hung kernel.
        gpu_s: returns the seconds for which the attempt has occupied its device, which each renewal states.
        after_renewal: called in the renewing thread when it starts and after each renewal, unless the item is lost or
            canceled; raises no error.
    """

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        settings: Settings,
        *,
        on_stall: Callable[[Progress], object],
        gpu_s: Callable[[], float] = lambda: 0.0,
        after_renewal: Callable[[], object] = lambda: None,
    ) -> None:
        self.claim = claim
        self._ledger = ledger
        self._queue = settings.queue
        self._fresh_s = _FRESH_S * max(1.0, claim.slots / _FRESH_SLOTS)
        self._repeat_s = min(_REPEAT_SHARE * settings.queue.renew_s, _REPEAT_S)
        self._stall_s = settings.worker.stall_s
        # An upload reports nothing while it retries, and a download nothing while its host is silent. A store or a host
        # that is away must not end the process and cost an attempt; both have limits of their own.
        self._more_s = {"upload": settings.longest_upload_s, "fetch": settings.sources.download_s}
        self._on_stall = on_stall
        self._gpu_s = gpu_s
        self._after_renewal = after_renewal
        self._wake = threading.Event()
        # A separate thread, so that neither a long kernel nor a slow upload loses the lease.
        self._thread = threading.Thread(
            target=in_this_context(self._renew_until_closed), name="flux2-lease", daemon=True
        )
        # Guards everything below; notified after each answer from Redis and when the thread ends.
        self._changed = threading.Condition()
        self._progress = Progress(stage="adapter", step=0, steps=claim.spec.num_inference_steps)
        self._renewed_at = self._progressed_at = time.monotonic()
        self._expects_progress = False
        self._closed = False
        self._lost = False
        self._canceled = False

    def start(self) -> None:
        """Start to renew the lease.

        Raises:
            RuntimeError: no thread could be started.
        """
        self._thread.start()

    def close(self) -> None:
        """Stop renewing the lease and join the thread."""
        with self._changed:
            self._closed = True
        self._wake.set()
        self._thread.join()

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def expect_progress(self) -> Iterator[None]:
        """Treat missing progress in this block as a hung kernel."""
        with self._changed:
            self._progressed_at = time.monotonic()
            self._expects_progress = True
        try:
            yield
        finally:
            with self._changed:
                self._expects_progress = False

    def report(self, progress: Progress) -> None:
        """Record the item's progress, to be sent with a renewal; then do the same as `check`.

        Raises:
            LeaseLost: another worker owns the item.
            ItemCanceled: the caller canceled the job.
        """
        with self._changed:
            self._progress = progress
            self._progressed_at = time.monotonic()
            if self._progressed_at - self._renewed_at > self._fresh_s:
                self._wake.set()
        self.check()

    def check(self) -> None:
        """Return if the work may continue; block while Redis is away for longer than the lease.

        Raises:
            LeaseLost: another worker owns the item.
            ItemCanceled: the caller canceled the job.
        """
        with self._changed:
            # Blocking spends no GPU time on an image that another worker may already render.
            if self._overdue():
                self._wait_for_redis()
            lost, canceled = self._lost, self._canceled
        if lost:
            raise LeaseLost(
                f"{self.claim.item_id}: another worker owns the item; fence {self.claim.fence} is out of date"
            )
        if canceled:
            raise ItemCanceled(f"{self.claim.item_id}: canceled by the caller")

    def _overdue(self) -> bool:
        """Return whether the lease may have expired, by this host's clock; another worker may then own the item."""
        with self._changed:
            return not self._lost and time.monotonic() - self._renewed_at > self._queue.lease_ttl_s

    def _wait_for_redis(self) -> None:
        """Block until Redis answers a renewal. The caller holds `_changed`, which is released during the wait."""
        logger.warning("work waits for Redis", extra={"item": self.claim.item_id})
        # An item that waits for Redis has not stalled.
        expected, self._expects_progress = self._expects_progress, False
        self._wake.set()
        self._changed.wait_for(lambda: not self._overdue())
        self._progressed_at = time.monotonic()
        self._expects_progress = expected

    def _renew_until_closed(self) -> None:
        try:
            pause_s = self._queue.renew_s
            self._after_renewal()
            while True:
                self._sleep(min(pause_s, max(0.0, self._seconds_to_stall())))
                with self._changed:
                    closed, lost, progress = self._closed, self._lost, self._progress
                if closed:
                    return
                if not lost:
                    pause_s = self._repeat_s
                    if self._renew(progress):
                        pause_s = self._queue.renew_s
                        self._follow_renewal()
                if self._seconds_to_stall() <= 0:
                    self._on_stall(progress)
                    return
        finally:
            with self._changed:
                # Nothing renews the lease after this thread, even if it ends with an error.
                self._lost = self._lost or not self._closed
                self._changed.notify_all()

    def _follow_renewal(self) -> None:
        with self._changed:
            owned = not (self._lost or self._canceled)
        # Another worker may render the item now, or nobody wants it any more.
        if owned:
            self._after_renewal()

    def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or `_wake` is set; time in which the process was frozen counts as no stall."""
        began = time.monotonic()
        self._wake.wait(seconds)
        self._wake.clear()
        overslept = time.monotonic() - began - seconds
        if overslept > _FROZEN_S:
            with self._changed:
                self._progressed_at += overslept

    def _seconds_to_stall(self) -> float:
        """Return the seconds until the item counts as hung; infinite while no progress is expected."""
        with self._changed:
            if not self._expects_progress:
                return float("inf")
            limit_s = self._stall_s + self._more_s.get(self._progress.stage, 0)
            return self._progressed_at + limit_s - time.monotonic()

    def _renew(self, progress: Progress) -> bool:
        """Send one renewal; return whether Redis answered."""
        asked_at = time.monotonic()
        # Outside the lock: a silent Redis takes seconds to time out, and steps continue until the lease is overdue.
        try:
            answer = self._ledger.renew(self.claim, progress, gpu_s=self._gpu_s())
        except LedgerUnavailable as error:
            logger.warning("lease not renewed", extra={"item": self.claim.item_id, "error": str(error)})
            return False
        with self._changed:
            # From the time of the call, not of the answer: Redis may have set its deadline right after the call.
            self._renewed_at = asked_at
            self._lost = answer == "lost"
            self._canceled = answer == "cancel"
            self._changed.notify_all()
        return True
