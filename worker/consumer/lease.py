"""The lease on one item: renewed by a thread, it also carries progress out, brings a cancel in and sees a hung kernel.

The denoising loop calls `report` at each step. A thread renews the lease, so a long kernel or a slow upload does not
lose it. When the lease may have expired because Redis is away, `report` blocks, which spends no GPU time, until Redis
says who owns the item: after a short outage the work goes on where it was.
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
from shared.settings import Settings

logger = logging.getLogger("flux2.worker.consumer.lease")

# New progress is sent at once if the last renewal is older: live to a watching person, light for Redis.
_FRESH_S = 0.5
# A thread that wakes this much too late was stopped with its process, not only kept from the processor.
_FROZEN_S = 1.0


class Lease:
    """Renews the lease on a claim each `renew_s` seconds between `start` and `close`; also a context manager.

    Args:
        on_stall: called once, from the renewing thread, when the item has made no progress for `stall_s`; it is
            expected to end the process, since nothing else ends a kernel that hangs.
    """

    def __init__(
        self, ledger: Ledger, claim: Claim, settings: Settings, *, on_stall: Callable[[Progress], object]
    ) -> None:
        self.claim = claim
        self._ledger = ledger
        self._queue = settings.queue
        self._stall_s = settings.worker.stall_s
        # An upload reports nothing while it retries, for as long as its own budget.
        self._upload_s = settings.storage.retry_budget_s
        self._on_stall = on_stall
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_closed, name="flux2-lease", daemon=True)
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
        """Pass the item's progress on, then act as `check`.

        Raises:
            LeaseLost: another worker owns the item.
            ItemCanceled: the caller canceled the job.
        """
        with self._changed:
            self._progress = progress
            self._progressed_at = time.monotonic()
            if self._progressed_at - self._renewed_at > _FRESH_S:
                self._wake.set()
        self.check()

    def check(self) -> None:
        """Return if the work may go on; block while Redis is away for longer than the lease.

        Raises:
            LeaseLost: another worker owns the item.
            ItemCanceled: the caller canceled the job.
        """
        with self._changed:
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
        """Return whether another worker may own the item by now, as far as this host's clock can say."""
        with self._changed:
            return not self._lost and time.monotonic() - self._renewed_at > self._queue.lease_ttl_s

    def _wait_for_redis(self) -> None:
        """Block until Redis answers a renewal; needs `_changed`, which it releases while it waits."""
        logger.warning("work waits for Redis", extra={"item": self.claim.item_id})
        # Waiting for Redis is no stall of the item.
        expected, self._expects_progress = self._expects_progress, False
        self._wake.set()
        self._changed.wait_for(lambda: not self._overdue())
        self._progressed_at = time.monotonic()
        self._expects_progress = expected

    def _renew_until_closed(self) -> None:
        try:
            while True:
                self._sleep(min(self._queue.renew_s, max(0.0, self._seconds_to_stall())))
                with self._changed:
                    closed, lost, progress = self._closed, self._lost, self._progress
                if closed:
                    return
                if not lost:
                    self._renew(progress)
                if self._seconds_to_stall() <= 0:
                    self._on_stall(progress)
                    return
        finally:
            with self._changed:
                # However this thread ends, nobody renews from here on.
                self._lost = self._lost or not self._closed
                self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or `_wake` is set; time in which the whole process was frozen is no stall."""
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
            limit_s = self._stall_s + (self._upload_s if self._progress.stage == "upload" else 0)
            return self._progressed_at + limit_s - time.monotonic()

    def _renew(self, progress: Progress) -> None:
        asked_at = time.monotonic()
        # Outside the lock: a silent Redis takes seconds to time out, and steps go on until the lease is overdue.
        try:
            answer = self._ledger.renew(self.claim, progress)
        except LedgerUnavailable as error:
            logger.warning("lease not renewed", extra={"item": self.claim.item_id, "error": str(error)})
            return
        with self._changed:
            # The lease counts from the question: Redis may have set its deadline then.
            self._renewed_at = asked_at
            self._lost = answer == "lost"
            self._canceled = answer == "cancel"
            self._changed.notify_all()
