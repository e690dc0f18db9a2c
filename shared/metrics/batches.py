"""Number the counts of a process, so that the ledger adds each of them once, however often they are sent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from shared.metrics.tally import Tally


@dataclass(frozen=True)
class Batch:
    """Counts that are sent together.

    Attributes:
        boot: random identity of the process.
        number: rises with each batch of the process.
    """

    boot: str
    number: int
    counts: Mapping[str, int]


class Batches:
    """Takes the counts of a tally in numbered batches; one thread at a time may use it.

    A batch stays the next one until it is confirmed: its answer may be lost after the ledger has added it.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._boot = uuid.uuid4().hex
        self._number = 0
        self._unconfirmed: Batch | None = None

    def next(self) -> Batch | None:
        """Return the batch to send now; None if nothing was counted."""
        if self._unconfirmed is None and (counts := self._tally.take()):
            self._number += 1
            self._unconfirmed = Batch(self._boot, self._number, counts)
        return self._unconfirmed

    def confirm(self, batch: Batch | None) -> None:
        """Forget a batch that the ledger has answered."""
        if batch is self._unconfirmed:
            self._unconfirmed = None
