"""Add up what processes count by themselves, and read the sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.ledger import keys
from shared.ledger.session import Session
from shared.metrics.batches import Batch


class MetricSums:
    """The sums of all processes since the first start, by field; see `shared.metrics.definitions`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, source: str, batch: Batch) -> None:
        """Add the counts of a process that sends no heartbeat; those of a batch that came before are left out.

        Args:
            source: name of the process; two that run at once must differ.
        """
        self._session.run("add_metrics", source=source, batch=batch_arguments(batch))

    def read(self) -> Mapping[str, int]:
        """Return all sums."""
        with self._session.commands():
            stored = self._session.redis.hgetall(keys.METRICS)
        return {field: int(count) for field, count in stored.items()}


def batch_arguments(batch: Batch | None) -> dict[str, Any] | None:
    """Return a batch as the scripts read it."""
    return None if batch is None else {"boot": batch.boot, "number": batch.number, "counts": dict(batch.counts)}
