"""The part of a model's queues from which a forecast is made.

Its size is the same for any queue. Short scripts read it: Redis serves nobody else during one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from shared.ledger.bulk_reads import in_parts
from shared.ledger.session import Session
from shared.ledger.shape import Shape

# What is looked at.
_SHARES: Final = 32
_LANES: Final = 128
_ITEMS: Final = 128
_RUNNING: Final = 64
_LANES_AT_ONCE: Final = 16


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
    rest: float


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
        part: of all running items, those of these pools; the others are of other models.
    """

    taken_ms: int
    sequence: int
    pools: Sequence[PoolSnapshot]
    running: Sequence[RunningItem]
    weight: float
    part: float = 1.0

    @classmethod
    def read(cls, session: Session, pools: Sequence[str], *, now_ms: int) -> Self:
        """Read the queues of these pools; the caller is inside of `Session.commands`."""

        def run(script: str, **arguments: Any) -> Any:
            # cjson writes an empty list as an object.
            return json.loads(session.run_in_commands(script, **arguments)) or []

        queues = run("outlook", pools=pools, shares=_SHARES, lanes=_LANES)
        running = [_running(*item) for item in run("outlook_running", pools=pools, items=_RUNNING)]
        places = [
            (pool, lane)
            for pool, *_, shares in queues["pools"]
            for *_, lanes in shares or []
            for lane, *_ in lanes or []
        ]
        chunks: dict[tuple[str, str], list[Chunk]] = {}
        for part in in_parts(places, _LANES_AT_ONCE):
            found = run("outlook_lanes", lanes=part, items=max(1, _ITEMS // len(places)))
            chunks |= {place: [_chunk(*item) for item in items or []] for place, items in zip(part, found, strict=True)}
        return cls(
            taken_ms=now_ms,
            sequence=queues["sequence"],
            pools=[_pool(*pool, chunks=chunks) for pool in queues["pools"] or []],
            running=sorted(running, key=lambda item: item.started_ms),
            weight=max(1.0, queues["leases"] / _RUNNING),
            part=len(running) / min(queues["leases"], _RUNNING) if queues["leases"] else 1.0,
        )


def _pool(
    pool: str,
    pace_ms: float,
    shares: int,
    sampled: Any,
    *,
    chunks: Mapping[tuple[str, str], Sequence[Chunk]],
) -> PoolSnapshot:
    parsed = [_share(pool, *share, chunks=chunks) for share in sampled or []]
    return PoolSnapshot(
        pool,
        pace_ms=pace_ms if pace_ms >= 0 else None,
        weight=max(1.0, shares / max(1, len(parsed))),
        shares=parsed,
    )


def _share(
    pool: str,
    priority: int,
    tenant: str,
    running: int,
    last_claim_ms: int,
    queued: int,
    lane_count: int,
    lanes: Any,
    *,
    chunks: Mapping[tuple[str, str], Sequence[Chunk]],
) -> ShareSnapshot:
    parsed = [
        LaneSnapshot(name, adapters, warm_slots > 0, chunks[pool, lane])
        for lane, name, adapters, warm_slots in lanes or []
    ]
    known = sum(chunk.items for lane in parsed for chunk in lane.chunks)
    rest = max(0.0, queued - known) if lane_count > len(parsed) else 0.0
    return ShareSnapshot(priority, tenant, running, last_claim_ms, parsed, rest)


def _chunk(order: int, accepted_ms: int, items: float, shape: str) -> Chunk:
    return Chunk(order, accepted_ms, items, Shape.parse(shape) if shape else None)


def _running(started_ms: int, share: str, pool: str, adapters: str, prepared: str, shape: str) -> RunningItem:
    return RunningItem(started_ms, share, pool, adapters, prepared, Shape.parse(shape) if shape else None)
