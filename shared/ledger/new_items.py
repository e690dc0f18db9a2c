"""Items that nobody has submitted yet, put at the end of a queue that is then played forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shared.ledger.job_forecast import Place, WaitingItem
from shared.ledger.playback import SlotGroup
from shared.ledger.queue_snapshot import Chunk, LaneSnapshot, PoolSnapshot, QueueSnapshot, ShareSnapshot
from shared.ledger.render_times import RenderTimes
from shared.ledger.shape import Shape

# More adapter lists share lanes: the time to play the queue grows with their number.
_MOST_LANES: Final = 64


@dataclass(frozen=True)
class NewItems:
    """The items of a call that may come.

    Attributes:
        shapes: number of items of each adapter list by shape.
        lists: number of adapter lists.
    """

    pool: str
    tenant: str
    priority: int
    shapes: Mapping[Shape, int]
    lists: int

    def add_to(self, snapshot: QueueSnapshot) -> QueueSnapshot:
        """Return the queue with these items behind all others."""
        known = next((pool for pool in snapshot.pools if pool.pool == self.pool), None)
        pool = known or PoolSnapshot(self.pool, pace_ms=None, weight=1.0, shares=[])
        # A pool of which not all shares are looked at counts each several times.
        lanes = self._lanes(snapshot, 1 / pool.weight)
        others = [share for share in pool.shares if (share.priority, share.tenant) != (self.priority, self.tenant)]
        own = [share for share in pool.shares if share not in others]
        before = own[0] if own else ShareSnapshot(self.priority, self.tenant, 0, 0, [], 0.0)
        share = replace(before, lanes=[*before.lanes, *lanes])
        changed = replace(pool, shares=[*others, share])
        return replace(snapshot, pools=[*(one for one in snapshot.pools if one is not known), changed])

    def last_items(self, snapshot: QueueSnapshot) -> list[tuple[WaitingItem, Place]]:
        """Return the last item of each lane, and its place, in what `add_to` returned."""
        lasts = []
        for lane in self._lanes(snapshot, 1.0):
            last = lane.chunks[-1]
            item = WaitingItem(
                item_id=lane.name,
                pool=self.pool,
                lane=f"{self.priority}|{self.tenant}|{lane.name}",
                order=last.order,
                shape=last.shape,
                started_ms=None,
            )
            lasts.append((item, Place(rank=round(sum(chunk.items for chunk in lane.chunks)) - 1)))
        return lasts

    def device_s(self, groups: Sequence[SlotGroup], times: RenderTimes) -> float | None:
        """Return the seconds for which the items occupy devices, with a swap for each adapter list; None if unknown."""
        precision = next((group.precision for group in groups if self.pool in group.pools), "")
        total_ms = times.swap_ms(pool=self.pool, precision=precision)
        for shape, count in self.shapes.items():
            expected = times.of(shape, pool=self.pool, precision=precision)
            if expected is None:
                return None
            total_ms += count * expected.render_ms
        return self.lists * total_ms / 1000

    def _lanes(self, snapshot: QueueSnapshot, part: float) -> Sequence[LaneSnapshot]:
        number = min(self.lists, _MOST_LANES)
        order, lanes = snapshot.sequence, []
        for position in range(number):
            lists = self.lists // number + (position < self.lists % number)
            chunks = []
            for shape, count in self.shapes.items():
                chunks.append(Chunk(order + 1, snapshot.taken_ms, count * lists * part, shape))
                order += count * lists
            name = f"new:{position}"
            lanes.append(LaneSnapshot(name, name, is_warm=False, chunks=chunks))
        return lanes
