"""Play the queue of a model forward: which items start when, if slots claim as the scheduler chooses and no job comes.

The cost is about the same for any queue and fleet: a few slots play a large fleet, so that each of them stands for
several, and the further ahead, the more items a slot claims at once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NamedTuple

from shared.ledger.played_lane import Lane
from shared.ledger.played_queue import LastClaim, PlayedQueue, Rank, Share, Tenant
from shared.ledger.queue_snapshot import QueueSnapshot, RunningItem
from shared.ledger.render_times import ItemTime, RenderTimes

# Slots that play a larger fleet.
_MOST_SLOTS = 16
# So many claims of one item are played; then all slots together may claim this part of the items claimed since at once.
_SINGLE_CLAIMS, _BATCH_PART = 128, 1 / 4
# The rest of the queue counts as the last item that was played.
_MOST_EVENTS = 5000
_MOST_LOAD = 0.9
# Order of events at the same time.
_ENDS, _CLAIMS, _PREPARES = range(3)
# The part of an item's time after which its slot prepares the next one.
_PREPARES_AT = 0.1
# As in `choose.lua`.
_SIMULTANEOUS, _CLAIMS_KEPT = 0.1, 8
# Where nothing is measured, only the order of the claims counts.
UNKNOWN_TIME = ItemTime(1000.0, 0.0, 0.0)


@dataclass(frozen=True)
class SlotGroup:
    """Slots that claim from the same pools, with weights of one precision."""

    pools: frozenset[str]
    precision: str
    count: int


@dataclass
class _Slot:
    """A slot, or several of them.

    Attributes:
        width: number of slots for which it stands.
        merged: the adapters of the item that it renders, or rendered last.
        prepared: those of the item that it prepares; its next claim prefers them.
        share: that of its last item, which ends at `ends_ms`.
        claims: number of its claims so far.
    """

    group: SlotGroup
    width: int
    merged: str = ""
    prepared: str = ""
    share: Share | None = None
    ends_ms: float = 0.0
    claims: int = 0


class _Event(NamedTuple):
    """What happens next; at the same time, items end first."""

    at_ms: float
    order: int
    number: int
    happen: Callable[[], None]


class Playback:
    """The claims to come.

    Attributes:
        queues: the queue of each pool, with the claims of its items.
    """

    def __init__(
        self,
        snapshot: QueueSnapshot,
        groups: Sequence[SlotGroup],
        times: RenderTimes,
        *,
        wait_bound_ms: float,
        arrivals_per_ms: float = 0.0,
    ) -> None:
        load = _load(snapshot, groups, times, arrivals_per_ms * min(1.0, snapshot.part))
        self.queues = {
            pool.pool: PlayedQueue(pool, refill=load / (1 - load), newest=snapshot.sequence) for pool in snapshot.pools
        }
        self._taken_ms = snapshot.taken_ms
        self._times = times
        self._wait_bound_ms = wait_bound_ms
        self._slot_count = sum(group.count for group in groups)
        self._claimed = 0.0
        self._now_ms = 0.0
        self._number = count()
        self._events: list[_Event] = []
        # Number of slots that have adapters merged or prepare them, as the ledger counts them.
        self._warm: Counter[str] = Counter()
        self._begin(snapshot, _slots(groups))
        for _ in range(_MOST_EVENTS):
            if not self._events:
                break
            event = heapq.heappop(self._events)
            self._now_ms = event.at_ms
            event.happen()

    def _after(self, delay_ms: float, order: int, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, _Event(self._now_ms + delay_ms, order, next(self._number), happen))

    def _begin(self, snapshot: QueueSnapshot, slots: list[_Slot]) -> None:
        """Let running items occupy slots, and the other slots claim now."""
        for position, item in enumerate(snapshot.running):
            left_ms, store_ms = self._left_ms(item, "", position)
            self._after(left_ms + store_ms, _ENDS, partial(self._end, self._tenant(item), snapshot.weight))
        free = list(slots)
        for position, item in enumerate(self._rendering(snapshot, len(slots))):
            slot = next((slot for slot in free if item.pool in slot.group.pools), None)
            if slot is not None:
                free.remove(slot)
                slot.merged, slot.prepared = item.adapters, item.prepared
                left_ms, store_ms = self._left_ms(item, slot.group.precision, position)
                slot.share, slot.ends_ms, slot.claims = self._share(item), left_ms + store_ms, 1
                self._after(left_ms, _CLAIMS, partial(self._claim, slot))
        known = {adapters for slot in slots for adapters in (slot.merged, slot.prepared)}
        lanes = (lane for queue in self.queues.values() for lane in queue.lanes)
        others = dict.fromkeys(lane.adapters for lane in lanes if lane.is_warm and lane.adapters not in known)
        for slot, adapters in zip(free, others, strict=False):
            slot.merged = slot.prepared = adapters
        for slot in free:
            self._after(0.0, _CLAIMS, partial(self._claim, slot))
        for slot in slots:
            self._warm.update({slot.merged: slot.width})
            self._warm.update({slot.prepared: slot.width})

    def _rendering(self, snapshot: QueueSnapshot, slots: int) -> list[RunningItem]:
        """Return a running item for each slot that renders; the others, which started first, are being stored."""
        busy = min(slots, round(len(snapshot.running) * snapshot.weight * slots / self._slot_count))
        latest = snapshot.running[-max(1, round(self._slot_count / snapshot.weight)) :]
        return [latest[number * len(latest) // busy] for number in range(busy)]

    def _tenant(self, item: RunningItem) -> Tenant | None:
        queue = self.queues.get(item.pool)
        return None if queue is None else queue.tenants.get(item.tenant)

    def _share(self, item: RunningItem) -> Share | None:
        queue = self.queues.get(item.pool)
        return None if queue is None else queue.all_shares.get(item.share)

    def _left_ms(self, item: RunningItem, precision: str, position: int) -> tuple[float, float]:
        """Return for how long an item occupies its slot, and for how long it is stored then."""
        time = self._times.of(item.shape, pool=item.pool, precision=precision) or UNKNOWN_TIME
        left_ms = item.started_ms + time.render_ms - self._taken_ms
        # Items that take longer than expected end in the order of their starts.
        return max(left_ms, float(position)), time.store_ms

    def _end(self, tenant: Tenant | None, items: float) -> None:
        if tenant is not None:
            tenant.running -= items

    def _best(self, slot: _Slot) -> tuple[PlayedQueue, Share, Lane] | None:
        """Return what a slot would claim now, as `choose.lua` does; None if its queues are empty."""

        def is_warm_elsewhere(adapters: str) -> bool:
            own = (adapters == slot.merged) + (adapters == slot.prepared)
            return self._warm[adapters] > own * slot.width

        passed_ms = self._now_ms if self._times.are_known else 0.0
        best: tuple[Rank, PlayedQueue, Share, Lane] | None = None
        for pool in slot.group.pools:
            queue = self.queues.get(pool)
            if queue is None or queue.is_empty:
                continue
            rank, share, lane = queue.best(
                slot.prepared,
                is_warm_elsewhere,
                last=self._last_claim(slot),
                follows_order=slot.claims % _CLAIMS_KEPT == 0,
                overdue_before_ms=self._taken_ms + passed_ms - self._wait_bound_ms,
                simultaneous_ms=_SIMULTANEOUS * self._wait_bound_ms,
            )
            if best is None or rank < best[0]:
                best = rank, queue, share, lane
        return None if best is None else best[1:]

    def _last_claim(self, slot: _Slot) -> LastClaim | None:
        if slot.share is None or self._now_ms >= slot.ends_ms:
            return None
        follows_turns = slot.claims % _CLAIMS_KEPT == 0
        return LastClaim(slot.share, slot.prepared, slot.width, follows_turns)

    def _prepare(self, slot: _Slot) -> None:
        best = self._best(slot)
        if best is not None:
            self._set_prepared(slot, best[2].adapters)

    def _set_prepared(self, slot: _Slot, adapters: str) -> None:
        self._warm[slot.prepared] -= slot.width
        self._warm[adapters] += slot.width
        slot.prepared = adapters

    def _set_merged(self, slot: _Slot, adapters: str) -> None:
        self._warm[slot.merged] -= slot.width
        self._warm[adapters] += slot.width
        slot.merged = adapters

    def _claim(self, slot: _Slot) -> None:
        """Let a slot claim its next items, or leave it idle if its queues are empty."""
        best = self._best(slot)
        if best is None:
            return
        queue, share, lane = best
        pool, precision = queue.pool, slot.group.precision
        time = self._times.of(lane.head.shape, pool=pool, precision=precision) or UNKNOWN_TIME
        swap_ms = 0.0 if lane.adapters == slot.merged else self._times.swap_ms(pool=pool, precision=precision)
        batch = max(1.0, (self._claimed / slot.width - _SINGLE_CLAIMS) * slot.width * _BATCH_PART / self._slot_count)
        items = queue.claim(
            share,
            lane,
            slot.width * batch,
            start_ms=self._now_ms + swap_ms,
            spacing_ms=time.render_ms / slot.width,
        )
        self._claimed += items
        self._set_merged(slot, lane.adapters)
        self._set_prepared(slot, lane.adapters)
        at_once = min(items, slot.width)
        share.tenant.running += at_once
        share.tenant.last_claim_ms = self._taken_ms + self._now_ms
        occupied_ms = (swap_ms * at_once + time.render_ms * items) / slot.width
        rendered_ms = max(occupied_ms, swap_ms + time.render_ms)
        slot.share, slot.ends_ms, slot.claims = share, self._now_ms + rendered_ms + time.store_ms, slot.claims + 1
        self._after(rendered_ms + time.store_ms, _ENDS, partial(self._end, share.tenant, at_once))
        if batch == 1.0:
            self._after(_PREPARES_AT * occupied_ms, _PREPARES, partial(self._prepare, slot))
        self._after(occupied_ms, _CLAIMS, partial(self._claim, slot))


def _load(snapshot: QueueSnapshot, groups: Sequence[SlotGroup], times: RenderTimes, arrivals_per_ms: float) -> float:
    """Return the part of the fleet that is busy with items that come, if they take as long as those that wait."""
    work_ms, items = 0.0, 0.0
    for pool in snapshot.pools:
        for chunk in (chunk for share in pool.shares for lane in share.lanes for chunk in lane.chunks):
            time = times.of(chunk.shape, pool=pool.pool, precision=groups[0].precision)
            work_ms, items = work_ms + chunk.items * (time.render_ms if time else 0.0), items + chunk.items
    mean_ms = work_ms / items if items else 0.0
    return min(_MOST_LOAD, arrivals_per_ms * mean_ms / sum(group.count for group in groups))


def _slots(groups: Sequence[SlotGroup]) -> list[_Slot]:
    """Return the slots that play the fleet."""
    total = sum(group.count for group in groups)
    played = []
    for group in groups:
        number = max(1, round(group.count * min(1.0, _MOST_SLOTS / total)))
        played += [_Slot(group, width=max(1, round(group.count / number))) for _ in range(number)]
    return played
