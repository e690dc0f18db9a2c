"""One worker process on one device, as the ledger sees it: a name, a boot identity and a heartbeat."""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shared.errors import LedgerUnavailable
from shared.job import Engine, pool
from shared.ledger import Claim, Ledger

logger = logging.getLogger("flux2.worker.slot")

_BEAT_S = 3.0


def slot_name(configured: str | None, device: str) -> str:
    """Name a slot so that its successor on the same host and device has the same name."""
    return configured or f"{socket.gethostname()}/{device}"


class Slot:
    """What this process reports about itself, sent each few seconds and at each change.

    Attributes:
        boot: identity of this process, new at each start.
        claims: the items held now, oldest first: one that renders, beside one that is stored.
        draining: set when the process is told to stop; it takes nothing more.
        storage_failed: whether an item could not be stored, and the store has not answered since.
        wakes: how many wake-ups came.
        answering: whether one of them is being dealt with, as for minutes where a store does not answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        name: str,
        model: str,
        device: str,
        revision: str,
        precision: str,
        engines: Sequence[Engine],
    ) -> None:
        self.name = name
        #: Whose items it takes.
        self.pools = tuple(pool(model, engine) for engine in engines)
        self.boot = uuid.uuid4().hex
        self.claims: list[Claim] = []
        self.draining = threading.Event()
        self.storage_failed = False
        self.wakes = 0
        self.answering = False
        self._ledger = ledger
        self._report = {
            "model": model,
            "device": device,
            "revision": revision,
            "precision": precision,
            "engines": ",".join(engines),
            "state": "ready",
            "warm": "base",
            "item": "",
            "base_drift": "0",
        }
        self._stopped = threading.Event()
        self._beating = threading.Lock()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="flux2-slot", daemon=True)

    def start(self) -> None:
        """Announce the slot and keep announcing it; repeating it changes nothing."""
        if not self._thread.is_alive():
            self._beat()
            self._thread.start()

    def stop(self) -> None:
        """Take the slot out of the list of live ones."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._ledger.workers.remove(self.name)
        except LedgerUnavailable as error:
            logger.warning("slot left without a word", extra={"slot": self.name, "error": str(error)})

    def report_state(self, state: str) -> bool:
        """Tell `ready`, or why no work is taken: `faulty`; returns whether that is news."""
        if self._report["state"] == state:
            return False
        self._report["state"] = state
        self.start()
        self._beat()
        return True

    def report_drift(self, parameters: int) -> None:
        """Tell how many restored parameters differ from the checkpoint's; sent with the next heartbeat."""
        self._report["base_drift"] = str(parameters)

    @contextmanager
    def running(self, claim: Claim) -> Iterator[None]:
        """Report the item while it runs; its adapters are this slot's from now on, so that others leave them to it."""
        self.claims.append(claim)
        self._report["warm"] = claim.spec.adapter_key
        self._beat()
        try:
            yield
        finally:
            self.claims.remove(claim)
            self._beat()

    def _beat_until_stopped(self) -> None:
        while not self._stopped.wait(_BEAT_S):
            self._beat()

    def _beat(self) -> None:
        with self._beating:  # or an older report could arrive last
            report = dict(self._report)
            if claims := list(self.claims):
                report.update(state="busy", item=claims[-1].item_id)
            if self.draining.is_set():
                report["state"] = "draining"
            try:
                self._ledger.workers.record_heartbeat(self.name, report)
            except LedgerUnavailable as error:
                logger.warning("heartbeat not sent", extra={"slot": self.name, "error": str(error)})
