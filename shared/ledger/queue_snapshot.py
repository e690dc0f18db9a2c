"""The part of a model's queues from which a forecast is made; `scripts/outlook.lua` reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.ledger.shape import Shape


@dataclass(frozen=True)
class Chunk:
    """Consecutive items of a lane; the first stands for all of them.

    Attributes:
        order: accept order of the first.
        shape: None if an earlier version accepted it.
        is_expected: whether the items have not come yet.
    """

    order: int
    accepted_ms: int
    items: float
    shape: Shape | None
    is_expected: bool = False


@dataclass(frozen=True)
class LaneSnapshot:
    """The queued items of a share that want the same adapters.

    Attributes:
        name: what follows the share in the lane's name.
        adapters: their short name.
        is_warm: whether a slot has the adapters merged, or merges them next.
    """

    name: str
    adapters: str
    is_warm: bool
    chunks: Sequence[Chunk]


@dataclass(frozen=True)
class ShareSnapshot:
    """The queued items of a tenant with one priority.

    Attributes:
        running: running items of the tenant.
        lanes: the oldest, with all their items.
        rest: number of the items in other lanes.
    """

    priority: int
    tenant: str
    running: int
    last_claim_ms: int
    lanes: Sequence[LaneSnapshot]
    rest: int


@dataclass(frozen=True)
class PoolSnapshot:
    """The queue of one pool.

    Attributes:
        pace_ms: smoothed time of its items; None while none has succeeded.
        weight: number of shares for which each of `shares` stands.
        shares: in the order of their turns.
    """

    pool: str
    pace_ms: float | None
    queued: int
    weight: float
    shares: Sequence[ShareSnapshot]


@dataclass(frozen=True)
class RunningItem:
    """An item that a slot renders or stores.

    Attributes:
        share: its priority and its tenant.
        prepared: adapters of the item that the slot prepares, or those of the item that it claimed last.
    """

    started_ms: int
    share: str
    pool: str
    adapters: str
    prepared: str
    shape: Shape | None

    @property
    def tenant(self) -> str:
        return self.share.partition("|")[2]


@dataclass(frozen=True)
class QueueSnapshot:
    """The queues of some pools at one time.

    Attributes:
        sequence: accept order of the last item.
        running: running items of the pools, oldest first.
        weight: number of running items for which each of them stands.
    """

    taken_ms: int
    sequence: int
    pools: Sequence[PoolSnapshot]
    running: Sequence[RunningItem]
    weight: float

    @classmethod
    def parse(cls, reply: str, *, now_ms: int) -> Self:
        """Read the answer of the script."""
        data = json.loads(reply)
        running = [_running(*item) for item in _list(data["running"])]
        return cls(
            taken_ms=now_ms,
            sequence=data["sequence"],
            pools=[_pool(*pool) for pool in _list(data["pools"])],
            running=sorted(running, key=lambda item: item.started_ms),
            weight=max(1.0, data["leases"] / _RUNNING_LOOKED_AT),
        )


# As in the script.
_RUNNING_LOOKED_AT = 64


def _pool(pool: str, pace_ms: float, queued: int, shares: int, sampled: Any) -> PoolSnapshot:
    parsed = [_share(*share) for share in _list(sampled)]
    return PoolSnapshot(
        pool,
        pace_ms=pace_ms if pace_ms >= 0 else None,
        queued=queued,
        weight=max(1.0, shares / max(1, len(parsed))),
        shares=parsed,
    )


def _share(
    priority: int, tenant: str, running: int, last_claim_ms: int, queued: int, lane_count: int, lanes: Any
) -> ShareSnapshot:
    parsed = [
        LaneSnapshot(name, adapters, warm_slots > 0, [_chunk(*chunk) for chunk in _list(chunks)])
        for name, adapters, warm_slots, _, chunks in _list(lanes)
    ]
    known = sum(count for _, _, _, count, _ in _list(lanes))
    rest = max(0, queued - known) if lane_count > len(parsed) else 0
    return ShareSnapshot(priority, tenant, running, last_claim_ms, parsed, rest)


def _chunk(order: int, accepted_ms: int, items: float, shape: str) -> Chunk:
    return Chunk(order, accepted_ms, items, Shape.parse(shape) if shape else None)


def _running(started_ms: int, share: str, pool: str, adapters: str, prepared: str, shape: str) -> RunningItem:
    return RunningItem(started_ms, share, pool, adapters, prepared, Shape.parse(shape) if shape else None)


def _list(value: Any) -> Any:
    """Return a list of the script's answer: cjson writes an empty one as an object."""
    return value or []
