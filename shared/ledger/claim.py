"""The right of a worker to run one item, and what the reaper does with rights that expired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.job import ItemSpec


@dataclass(frozen=True)
class Claim:
    """The right to run one item, until the lease ends.

    Attributes:
        item_id: `{job}:{index}`.
        fence: claim count of the item; every write names it.
        attempt: attempts counted so far, this one included; 1 the first time.
        queued_s: how long the item waited since it was last queued, in seconds.
    """

    item_id: str
    fence: int
    attempt: int
    spec: ItemSpec
    queued_s: float

    @property
    def job_id(self) -> str:
        # The last colon separates the index, whatever the job's id contains.
        return self.item_id.rpartition(":")[0]

    @property
    def index(self) -> int:
        return int(self.item_id.rpartition(":")[2])


@dataclass(frozen=True)
class ReapResult:
    """What one pass of the reaper did.

    Attributes:
        requeued: items put back into the queue, counted by pool.
        ended: ids of the items that were canceled or had no attempts left.
        grace: Redis had restarted, so every lease got a full term instead.
    """

    requeued: Mapping[str, int]
    ended: Sequence[str]
    grace: bool
