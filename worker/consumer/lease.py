"""Keeps the right to run one item, and carries word both ways: progress out, cancel in.

The denoising loop calls `report` at each step; a thread renews the lease meanwhile, so a long kernel or a slow upload
does not lose it. When the lease may be gone because Redis is away, the work waits, and so spends no GPU, until Redis
says whose the item is: after a short outage it goes on where it was. The same thread sees a kernel that hangs.
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

logger = logging.getLogger("flux2.worker.lease")

# New progress is sent at once if the last renewal is older: live to a watching person, light for Redis.
_FRESH_S = 0.5
# A thread that wakes this much too late was stopped, not only kept from the processor.
_FROZEN_S = 1.0


class Lease:
    """A context in which the item's lease is renewed each `renew_s`.

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
        # An upload has a budget of its own, in which it reports nothing.
        self._upload_s = settings.storage.retry_budget_s
        self._on_stall = on_stall
        self._progress = Progress(stage="adapter", step=0, steps=claim.spec.num_inference_steps)
        self._renewed_at = self._progressed_at = time.monotonic()
        self._wake = threading.Event()
        self._answered = threading.Condition()
        self._watching = False
        self._closed = False
        self._lost = False
        self._canceled = False
        self._thread = threading.Thread(target=self._renew_until_closed, name="flux2-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Expect progress in this block, and take its absence for a hung kernel."""
        self._progressed_at = time.monotonic()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def report(self, progress: Progress) -> None:
        """Tell where the item is, and learn whether to go on; waits while that cannot be known.

        Raises:
            LeaseLost: another worker owns the item.
            ItemCanceled: the caller canceled the job.
        """
        self._progress = progress
        self._progressed_at = time.monotonic()
        if time.monotonic() - self._renewed_at > _FRESH_S:
            self._wake.set()
        self.check()

    def check(self) -> None:
        """Raise and wait as `report` does, without news."""
        if self._overdue():
            self._wait_for_word()
        if self._lost:
            raise LeaseLost(f"{self.claim.item_id}: the lease of fence {self.claim.fence} is gone")
        if self._canceled:
            raise ItemCanceled(f"{self.claim.item_id}: canceled by the caller")

    def _overdue(self) -> bool:
        """Whether another worker may own the item by now, as far as this host's clock can tell."""
        return not self._lost and time.monotonic() - self._renewed_at > self._queue.lease_ttl_s

    def _wait_for_word(self) -> None:
        logger.warning("work waits for Redis", extra={"item": self.claim.item_id})
        with self._answered:
            watching, self._watching = self._watching, False
            self._wake.set()
            self._answered.wait_for(lambda: not self._overdue())
            self._progressed_at = time.monotonic()
            self._watching = watching

    def _renew_until_closed(self) -> None:
        try:
            while True:
                self._sleep(min(self._queue.renew_s, max(0.0, self._left_s())))
                if self._closed:
                    return
                if not self._lost:
                    self._renew()
                if self._left_s() <= 0:
                    self._on_stall(self._progress)
                    return
        finally:
            with self._answered:
                # However this thread ends, nobody renews from here on.
                self._lost = self._lost or not self._closed
                self._answered.notify_all()

    def _sleep(self, seconds: float) -> None:
        """Wait to be woken; time in which the whole process was frozen is no sign of a hung kernel."""
        began = time.monotonic()
        self._wake.wait(seconds)
        self._wake.clear()
        overslept = time.monotonic() - began - seconds
        if overslept > _FROZEN_S:
            self._progressed_at += overslept

    def _left_s(self) -> float:
        """Seconds until the item counts as hung."""
        if not self._watching:
            return float("inf")
        limit_s = self._stall_s + (self._upload_s if self._progress.stage == "upload" else 0)
        return self._progressed_at + limit_s - time.monotonic()

    def _renew(self) -> None:
        asked_at = time.monotonic()
        try:
            answer = self._ledger.renew(self.claim, self._progress)
        except LedgerUnavailable as error:
            logger.warning("lease not renewed", extra={"item": self.claim.item_id, "error": str(error)})
            return
        with self._answered:
            self._renewed_at = asked_at
            self._lost = answer == "lost"
            self._canceled = answer == "cancel"
            self._answered.notify_all()
