"""Estimate when jobs that have not ended get their turn, and when they end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.job import State, is_large
from shared.ledger.session import Session, to_ms
from shared.ledger.slot_kinds import SlotKind, SlotKinds

# Each poll of a job would count the fleet.
_SLOTS_KEPT_MS = 1000


@dataclass(frozen=True)
class Outlook:
    """The outlook of a job; see `JobView` for the fields."""

    queue_position: int | None = None
    eta_s: float | None = None


class Forecaster:
    """Estimates the outlook of jobs from the queue and the live slots."""

    def __init__(self, session: Session, slot_kinds: SlotKinds, *, wait_bound_s: float) -> None:
        self._session = session
        self._slot_kinds = slot_kinds
        self._wait_bound_ms = to_ms(wait_bound_s)
        # With the time at which they were read.
        self._slots: tuple[int, Mapping[SlotKind, int]] | None = None

    def forecast(self, items: Sequence[Mapping[str, str]], *, now_ms: int) -> Outlook:
        """Return the outlook of an unfinished job; the caller is inside of `Session.commands`.

        Args:
            items: the hashes of its items, by index.
        """
        by_pool: dict[str, list[Mapping[str, str]]] = {}
        for item in items:
            # Ended items name no pool. An item that did not fit on a device is in another pool than the others.
            if "finished_ms" not in item and "pool" in item:
                by_pool.setdefault(item["pool"], []).append(item)
        if not by_pool:
            return Outlook()
        slots = self._live_slots(now_ms)
        parts = [_PoolPart.of(pool, members, slots) for pool, members in by_pool.items()]
        queries = [part.query() for part in parts]
        replies = json.loads(self._session.run_in_commands("outlook", items=queries, wait_bound_ms=self._wait_bound_ms))
        outlooks = [part.outlook(reply, now_ms=now_ms) for part, reply in zip(parts, replies, strict=True)]
        positions = [outlook.queue_position for outlook in outlooks if outlook.queue_position is not None]
        times_s = [outlook.eta_s for outlook in outlooks if outlook.eta_s is not None]
        return Outlook(
            queue_position=min(positions, default=None),
            # A pool without a pace says nothing about the job's end.
            eta_s=max(times_s) if len(times_s) == len(parts) else None,
        )

    def _live_slots(self, now_ms: int) -> Mapping[SlotKind, int]:
        if self._slots is None or abs(now_ms - self._slots[0]) > _SLOTS_KEPT_MS:
            self._slots = (now_ms, self._slot_kinds.count_in_commands(now_ms=now_ms))
        return self._slots[1]


@dataclass(frozen=True)
class _PoolPart:
    """A job's unfinished items of one pool.

    Attributes:
        queued: ids of the queued ones, in accept order.
        started_ms: start of each running one.
        slots: live slots that serve the pool; at least 1, as if one came.
    """

    pool: str
    queued: Sequence[str]
    started_ms: Sequence[int]
    slots: int

    @classmethod
    def of(cls, pool: str, items: Sequence[Mapping[str, str]], slots: Mapping[SlotKind, int]) -> _PoolPart:
        return cls(
            pool,
            queued=[f"{item['job']}:{item['index']}" for item in items if item["state"] == State.QUEUED],
            started_ms=[
                int(item["started_ms"]) for item in items if item["state"] == State.RUNNING and "started_ms" in item
            ],
            slots=max(1, _count_serving(pool, slots)),
        )

    def query(self) -> dict[str, Any]:
        """Return the script's arguments; without a queued item, it has no positions to return."""
        first, last = (self.queued[0], self.queued[-1]) if self.queued else ("", "")
        return {"pool": self.pool, "first": first, "last": last, "slots": self.slots}

    def outlook(self, reply: Mapping[str, int], *, now_ms: int) -> Outlook:
        position, last = reply.get("first"), reply.get("last")
        if "pace_ms" not in reply:
            return Outlook(position)
        pace_ms = reply["pace_ms"]
        left_ms = [max(0, pace_ms - max(0, now_ms - started)) for started in self.started_ms]
        # The slots share the work, and an item runs on one slot only.
        end_ms = sum(left_ms) / self.slots
        if last is not None:
            end_ms += pace_ms * max(1.0, (last + 1) / self.slots)
        return Outlook(position, round(max(end_ms, *left_ms, 0) / 1000, 1))


def _count_serving(pool: str, slots: Mapping[SlotKind, int]) -> int:
    """Count the slots that take items of a pool now."""
    serving = {kind: count for kind, count in slots.items() if pool in kind.pools and kind.takes_work}
    largest_gib = max((kind.memory_gib for kind in serving), default=0)
    return sum(count for kind, count in serving.items() if not is_large(pool) or kind.memory_gib == largest_gib)
