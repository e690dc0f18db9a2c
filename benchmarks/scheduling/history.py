"""What happened to each item of a run, and the figures that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shared.job import ItemSpec
from shared.ledger.acceptance import Submission


@dataclass
class ItemRecord:
    """One item from its accept to its end; times in s since the start of the run.

    Attributes:
        started_s: its first claim.
        ended_s: its last commit.
        starts: number of claims.
        swaps: number of them that found other adapters in their slot.
        commits: number of commits that took effect.
    """

    item_id: str
    job_id: str
    spec: ItemSpec
    tenant: str
    priority: int
    accepted_s: float
    started_s: float | None = None
    ended_s: float | None = None
    starts: int = 0
    swaps: int = 0
    commits: int = 0

    @property
    def wait_s(self) -> float:
        """Seconds from the accept to the first claim."""
        assert self.started_s is not None
        return self.started_s - self.accepted_s

    def start(self, now_s: float, *, has_swap: bool) -> None:
        """Record a claim."""
        self.started_s = now_s if self.started_s is None else self.started_s
        self.starts += 1
        self.swaps += has_swap

    def end(self, now_s: float) -> None:
        """Record the commit."""
        self.ended_s = now_s
        self.commits += 1


class History:
    """The items of a run, in accept order."""

    def __init__(self) -> None:
        self._records: dict[str, ItemRecord] = {}
        self._jobs: dict[str, list[ItemRecord]] = {}
        self._unfinished = 0

    def accept(self, submission: Submission, now_s: float) -> None:
        """Record the items of a job that is accepted."""
        records = [
            ItemRecord(
                item_id=f"{submission.job_id}:{index}",
                job_id=submission.job_id,
                spec=spec,
                tenant=submission.tenant,
                priority=submission.priority,
                accepted_s=now_s,
            )
            for index, spec in enumerate(submission.items)
        ]
        self._jobs[submission.job_id] = records
        self._records |= {record.item_id: record for record in records}
        self._unfinished += len(records)

    def end(self, item_id: str, now_s: float) -> None:
        """Record the commit of an item."""
        record = self._records[item_id]
        self._unfinished -= record.ended_s is None
        record.end(now_s)

    def __getitem__(self, item_id: str) -> ItemRecord:
        return self._records[item_id]

    @property
    def items(self) -> Sequence[ItemRecord]:
        return list(self._records.values())

    @property
    def unfinished(self) -> int:
        """Number of accepted items that have not ended."""
        return self._unfinished

    @property
    def swaps(self) -> int:
        return sum(record.swaps for record in self._records.values())

    @property
    def end_s(self) -> float:
        """Time at which the last item ended."""
        return max(record.ended_s or 0.0 for record in self._records.values())

    def job_end_s(self, job_id: str) -> float | None:
        """Return when the last item of a job ended; None if one has not."""
        ends_s = [record.ended_s for record in self._jobs[job_id]]
        known_s = [end_s for end_s in ends_s if end_s is not None]
        return max(known_s) if len(known_s) == len(ends_s) else None

    def open_jobs(self) -> list[str]:
        """Return the accepted jobs that have not ended, in accept order."""
        return [job_id for job_id in self._jobs if self.job_end_s(job_id) is None]

    def waits_s(self, *, only: Callable[[ItemRecord], bool] = lambda _: True) -> list[float]:
        """Return how long each item waited for its first claim."""
        return [record.wait_s for record in self._records.values() if only(record)]


def percentile(values: Iterable[float], percent: int) -> float:
    """Return a percentile, interpolated between the two nearest values."""
    known = list(values)
    if len(known) == 1:
        return known[0]
    return statistics.quantiles(known, n=100, method="inclusive")[percent - 1]
