"""A worker's claim on one item, and the result of reaping expired claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.job import ItemSpec

#: Why an item was claimed instead of the oldest one of its pool: the first of these that applies.
#:
#: - `overdue`: it waited longer than the wait bound.
#: - `priority`: the oldest item has a lower priority.
#: - `share`: the oldest item belongs to another tenant, whose turn it is not.
#: - `warm`: the slot has its adapters merged.
#: - `cold`: the slot has to swap adapters for it.
ClaimReason = Literal["overdue", "priority", "share", "warm", "cold"]


def split_item_id(item_id: str) -> tuple[str, int]:
    """Return the job of an item, and the item's index in it."""
    # The last colon separates the index: the job's id may contain colons.
    job_id, _, index = item_id.rpartition(":")
    return job_id, int(index)


@dataclass(frozen=True)
class Claim:
    """The right to run one item, until the lease ends.

    Attributes:
        item_id: `{job}:{index}`.
        fence: claim count of the item; every write states it.
        attempt: number of attempts so far, including this one.
        queued_s: seconds since the item was last queued.
        pool: where the item waited; another pool than its spec's after it did not fit on a device.
        why: the reason of the choice.
        slots: number of slots of the fleet.
        trace: the `traceparent` of the submit; empty if it is not traced.
    """

    item_id: str
    fence: int
    attempt: int
    spec: ItemSpec
    queued_s: float
    pool: str
    why: ClaimReason
    slots: int = 0
    trace: str = ""

    @property
    def job_id(self) -> str:
        return split_item_id(self.item_id)[0]

    @property
    def index(self) -> int:
        return split_item_id(self.item_id)[1]


@dataclass(frozen=True)
class ReapResult:
    """The result of one pass of the reaper.

    Attributes:
        requeued: number of requeued items, by pool.
        ended: ids of the items that were canceled or had no attempts left.
        grace: whether leases were extended first, because no worker could renew them before this pass.
        slots: number of slots of the fleet, with those that died in the last seconds.
    """

    requeued: Mapping[str, int]
    ended: Sequence[str]
    grace: bool
    slots: int
