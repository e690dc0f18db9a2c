"""Keeps the right to run one item, and carries word both ways: progress out, cancel in.

The denoising loop calls `report` at each step; a thread renews the lease meanwhile, so a long kernel or a slow upload
does not lose it. The GPU stops being spent as soon as the lease is known, or must be assumed, to be gone.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from shared.errors import ItemCanceled, LeaseLost, LedgerUnavailable
from shared.job import Progress
from shared.ledger import Claim, Ledger
from shared.settings import QueueSettings

logger = logging.getLogger("flux2.worker.lease")

# New progress is sent at once if the last renewal is older: live to a watching person, light for Redis.
_FRESH_S = 0.5


class Lease:
    """A context in which the item's lease is renewed each `renew_s`.

    When Redis is away the lease is kept until the last granted ttl is over by this host's monotonic clock.
    """

    def __init__(self, ledger: Ledger, claim: Claim, settings: QueueSettings) -> None:
        self.claim = claim
        self._ledger = ledger
        self._settings = settings
        self._progress = Progress(stage="adapter", step=0, steps=claim.spec.num_inference_steps)
        self._renewed_at = time.monotonic()
        self._wake = threading.Event()
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

    def report(self, progress: Progress) -> None:
        """Tell where the item is, and learn whether to go on.

        Raises:
            LeaseLost: another worker owns the item, or may by now.
            ItemCanceled: the caller canceled the job.
        """
        self._progress = progress
        if time.monotonic() - self._renewed_at > _FRESH_S:
            self._wake.set()
        self.check()

    def check(self) -> None:
        """Raise as `report` does, without news."""
        if self._lost or time.monotonic() - self._renewed_at > self._settings.lease_ttl_s:
            raise LeaseLost(f"{self.claim.item_id}: the lease of fence {self.claim.fence} is gone")
        if self._canceled:
            raise ItemCanceled(f"{self.claim.item_id}: canceled by the caller")

    def _renew_until_closed(self) -> None:
        try:
            while not self._lost:
                self._wake.wait(self._settings.renew_s)
                self._wake.clear()
                if self._closed:
                    return
                self._renew()
        finally:
            # However this thread ends, nobody renews from here on.
            self._lost = self._lost or not self._closed

    def _renew(self) -> None:
        asked_at = time.monotonic()
        try:
            answer = self._ledger.renew(self.claim, self._progress)
        except LedgerUnavailable as error:
            logger.warning("lease not renewed", extra={"item": self.claim.item_id, "error": str(error)})
            return
        self._renewed_at = asked_at
        self._lost = answer == "lost"
        self._canceled = answer == "cancel"
