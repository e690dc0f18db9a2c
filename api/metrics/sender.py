"""Send what this API process counted to the ledger: it has no heartbeat that could carry it."""

from __future__ import annotations

import uuid

from shared.ledger import Ledger
from shared.metrics.batches import Batches
from shared.metrics.tally import PROCESS, Tally


class CountSender:
    """Sends the counts of a tally; one thread at a time may use it."""

    def __init__(self, ledger: Ledger, *, tally: Tally = PROCESS) -> None:
        self._ledger = ledger
        self._batches = Batches(tally)
        self._source = f"api/{uuid.uuid4().hex}"

    def send(self) -> None:
        """Send what was counted since the last call.

        Raises:
            LedgerUnavailable: Redis did not answer; the next call sends the same counts again.
        """
        batch = self._batches.next()
        if batch is not None:
            self._ledger.metrics.add(self._source, batch)
            self._batches.confirm(batch)
