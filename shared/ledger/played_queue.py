"""The queue of a pool while it is played forward: its shares, and the choice of the next lane.

The choice follows `scripts/choose.lua`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.ledger.played_lane import LEAST_ITEMS, ClaimCurve, Lane
from shared.ledger.queue_snapshot import Chunk, LaneSnapshot, PoolSnapshot, ShareSnapshot

#: Rank of the best item of a pool among those of other pools: 0 if it is overdue, then priority, then accept order.
Rank = tuple[int, int, int]


@dataclass
class Tenant:
    """What decides about the turn of a tenant in a pool."""

    name: str
    running: float
    last_claim_ms: float


@dataclass(frozen=True)
class LastClaim:
    """What a slot claimed last and has not stored yet.

    Attributes:
        adapters: those that the slot has merged, or prepared, since.
        items: number of slots for which it stands.
        follows_turns: whether the slot does not go on with its adapters where tenants have equal parts.
    """

    share: Share
    adapters: str
    items: float
    follows_turns: bool


class Share:
    """The lanes of one tenant and priority."""

    def __init__(self, snapshot: ShareSnapshot, tenant: Tenant, *, weight: float, refill: float, newest: int) -> None:
        self.priority = snapshot.priority
        self.tenant = tenant
        self.curve = ClaimCurve()
        self._by_name = {lane.name: Lane(lane, weight, refill) for lane in snapshot.lanes if lane.chunks}
        self._others, self._others_from, self._newest = snapshot.rest * weight, 0, newest
        if snapshot.rest and self._by_name:
            # Lanes whose items were claimed since their names were read are empty.
            last = next(lane for lane in reversed(snapshot.lanes) if lane.chunks).chunks[0]
            self._others_from = last.order + 1
            others = Chunk(self._others_from, last.accepted_ms, snapshot.rest, last.shape)
            self._by_name[OTHER_LANES] = Lane(LaneSnapshot(OTHER_LANES, OTHER_LANES, False, [others]), weight, refill)
        self.lanes = list(self._by_name.values())
        self._by_adapters = {lane.adapters: lane for lane in self.lanes}
        self._weight = weight

    @property
    def turn(self) -> tuple[int, float, float, str]:
        """Orders the shares of a pool."""
        return self.priority, self.tenant.running, self.tenant.last_claim_ms, self.tenant.name

    def next_lane(self, warm: str, is_warm_elsewhere: Callable[[str], bool]) -> Lane:
        """Return the lane from which a slot with these adapters claims."""
        own = self.lane_of(warm)
        if own is not None:
            return own
        lanes = sorted((lane for lane in self.lanes if not lane.is_empty), key=_order)
        return next((lane for lane in lanes if not is_warm_elsewhere(lane.adapters)), lanes[0])

    def lane_of(self, adapters: str) -> Lane | None:
        """Return the lane with these adapters, or None if it has no items."""
        lane = self._by_adapters.get(adapters)
        return None if lane is None or lane.is_empty else lane

    def goes_before(self, turn: Share, last: LastClaim) -> bool:
        """Return whether the slot that claimed from this share last goes on with it, although it is another's turn."""
        if turn.tenant is self.tenant or turn.priority != self.priority or turn.tenant.running < LEAST_ITEMS:
            return False
        own = self.lane_of(last.adapters)
        # Items that have not come yet may have any adapters.
        if own is None or own.head.is_expected or turn.lane_of(last.adapters) is not None:
            return False
        # The items that the slot claimed last are about to end.
        ahead = self.tenant.running - last.items - turn.tenant.running
        return ahead < -LEAST_ITEMS or (ahead < LEAST_ITEMS and not last.follows_turns)

    def start_of(self, lane_name: str, *, rank: int, order: int) -> tuple[float, float]:
        """Return the position and the start of an item; see `PlayedQueue.start_of`."""
        lane = self._by_name.get(lane_name)
        if lane is not None:
            return lane.curve.at(rank * self._weight)
        others = self._by_name.get(OTHER_LANES)
        if others is None:
            # A lane that came since.
            return self.curve.at(self.curve.claimed)
        # One of many lanes, of which the older ones come first.
        part = (order - self._others_from) / max(1, self._newest - self._others_from)
        return others.curve.at(self._others * min(max(part, 0.0), 1.0))

    def drop_empty(self) -> bool:
        """Forget the empty lanes; return whether none is left."""
        self.lanes = [lane for lane in self.lanes if not lane.is_empty]
        return not self.lanes


#: Stands for the adapters of all lanes that the snapshot leaves out.
OTHER_LANES = "others"


class PlayedQueue:
    """The queue of one pool.

    Args:
        refill: items that come while one is claimed.
        newest: accept order of the newest item of the ledger.
    """

    def __init__(self, snapshot: PoolSnapshot, *, refill: float, newest: int) -> None:
        self.pool = snapshot.pool
        self.curve = ClaimCurve()
        # Claims of items that are queued already.
        self._position = 0.0
        self.weight = snapshot.weight
        self.tenants: dict[str, Tenant] = {}
        self.all_shares: dict[str, Share] = {}
        for share in snapshot.shares:
            tenant = self.tenants.setdefault(share.tenant, Tenant(share.tenant, share.running, share.last_claim_ms))
            self.all_shares[f"{share.priority}|{share.tenant}"] = Share(
                share, tenant, weight=snapshot.weight, refill=refill, newest=newest
            )
        self._shares = [share for share in self.all_shares.values() if share.lanes]
        # By the accept order of their oldest items; the numbers differ.
        lanes = ((share, lane) for share in self._shares for lane in share.lanes)
        self._heads = [(lane.head.order, number, share, lane) for number, (share, lane) in enumerate(lanes)]
        heapq.heapify(self._heads)

    @property
    def lanes(self) -> Iterable[Lane]:
        return (lane for share in self._shares for lane in share.lanes)

    @property
    def is_empty(self) -> bool:
        return not self._shares

    def best(
        self,
        warm: str,
        is_warm_elsewhere: Callable[[str], bool],
        *,
        last: LastClaim | None = None,
        follows_order: bool = False,
        overdue_before_ms: float,
        simultaneous_ms: float = 0.0,
    ) -> tuple[Rank, Share, Lane]:
        """Return the share and the lane from which a slot with these adapters claims, and the item's rank.

        Args:
            last: None if the slot's last items have ended.
            follows_order: the slot takes the oldest overdue item whatever adapters it has.
            overdue_before_ms: items that were accepted before then are overdue.
            simultaneous_ms: of overdue items, those accepted so soon after the oldest may go before it.
        """
        oldest, lane = self._oldest()
        if lane.head.accepted_ms < overdue_before_ms:
            own = None if follows_order else oldest.lane_of(warm)
            latest_ms = min(overdue_before_ms, lane.head.accepted_ms + simultaneous_ms)
            chosen = own if own is not None and own.head.accepted_ms <= latest_ms else lane
            return (0, 0, lane.head.order), oldest, chosen
        share = min(self._shares, key=lambda share: share.turn)
        if last is not None and last.share in self._shares and last.share.goes_before(share, last):
            share = last.share
        lane = share.next_lane(warm, is_warm_elsewhere)
        return (1, share.priority, lane.head.order), share, lane

    def _oldest(self) -> tuple[Share, Lane]:
        """Return the lane with the oldest item; of a lane that was claimed from, the entry is out of date."""
        while True:
            order, number, share, lane = self._heads[0]
            if not lane.is_empty and lane.head.order == order:
                return share, lane
            heapq.heappop(self._heads)
            if not lane.is_empty:
                heapq.heappush(self._heads, (lane.head.order, number, share, lane))

    def claim(self, share: Share, lane: Lane, most: float, *, start_ms: float, spacing_ms: float) -> float:
        """Claim items of a lane, at most so many; return their number."""
        position, is_expected = self._position, lane.head.is_expected
        items = lane.claim(most)
        self._position += 0.0 if is_expected else items
        for curve in (lane.curve, share.curve, self.curve):
            curve.add(items, position=position, start_ms=start_ms, spacing_ms=spacing_ms)
        if lane.is_empty and share.drop_empty():
            self._shares.remove(share)
        return items

    def start_of(self, share_name: str, lane_name: str, *, rank: int, turn: int, order: int) -> tuple[float, float]:
        """Return the position and the start of an item.

        Args:
            rank: number of items of its lane before it.
            order: its accept order.
            turn: number of shares before its own; one of many that the snapshot leaves out starts as its neighbor does.
        """
        share = self.all_shares.get(share_name)
        if share is not None:
            return share.start_of(lane_name, rank=rank, order=order)
        priority = int(share_name.partition("|")[0])
        neighbors = list(self.all_shares.values())
        neighbor = neighbors[min(int(turn / self.weight), len(neighbors) - 1)] if neighbors else None
        if neighbor is not None and neighbor.priority == priority:
            return neighbor.curve.at(rank * self.weight)
        return self.curve.at(rank + sum(other.curve.claimed for other in neighbors if other.priority < priority))


def _order(lane: Lane) -> int:
    return lane.head.order
