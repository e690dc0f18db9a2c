"""When the unfinished items of a job start and end, according to a queue that was played forward."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from shared.job import State
from shared.ledger.playback import Playback, SlotGroup
from shared.ledger.queue_snapshot import QueueSnapshot
from shared.ledger.render_times import RenderTimes
from shared.ledger.shape import Shape

# A job that came later needs a new forecast, but not each one does.
_KEPT_MS, _KEPT_FOR_NEW_JOBS_MS = 1000, 500
# Making forecasts takes a twentieth of a core and of Redis at most, unless that would make them much too old.
_KEPT_FOR_ITS_COST, _LONGEST_KEPT_MS = 20, 5000
# The range of an estimate: parts of the wait, because jobs come or are canceled, and deviations of the item's own time.
# Four of five jobs of the simulation end in it.
_LESS_WAIT, _MORE_WAIT, _DEVIATIONS = 0.5, 0.7, 3.0


@dataclass(frozen=True)
class WaitingItem:
    """One unfinished item of a job.

    Attributes:
        order: accept order.
        shape: None if an earlier version accepted it.
        started_ms: None if it is queued.
    """

    item_id: str
    pool: str
    lane: str
    order: int
    shape: Shape | None
    started_ms: int | None

    @classmethod
    def of(cls, record: Mapping[str, str]) -> Self:
        """Read the hash of an item."""
        is_running = record["state"] == State.RUNNING and "started_ms" in record
        return cls(
            item_id=f"{record['job']}:{record['index']}",
            pool=record["pool"],
            lane=record["lane"],
            order=int(record["seq"]),
            shape=Shape.parse(record["shape"]) if "shape" in record else None,
            started_ms=int(record["started_ms"]) if is_running else None,
        )

    @property
    def share(self) -> str:
        """The name of the item's share."""
        priority, tenant, _ = self.lane.split("|", 2)
        return f"{priority}|{tenant}"


@dataclass(frozen=True)
class Place:
    """The place of a queued item.

    Attributes:
        rank: number of items of its lane before it.
        turn: number of shares whose turns are before that of its share.
    """

    rank: int = 0
    turn: int = 0


@dataclass(frozen=True)
class Ending:
    """When an item is expected to end, in ms from now, and the range of it."""

    left_ms: float
    low_ms: float
    high_ms: float


class ModelForecast:
    """The queue of one model, played forward once for all of its jobs.

    Args:
        reading_ms: time that it took to read the queue.

    Attributes:
        snapshot, groups, times: what it was made from.
    """

    def __init__(
        self,
        snapshot: QueueSnapshot,
        groups: Sequence[SlotGroup],
        times: RenderTimes,
        *,
        wait_bound_ms: float,
        arrivals_per_ms: float,
        reading_ms: float = 0.0,
    ) -> None:
        began_s = time.perf_counter()
        self.snapshot = snapshot
        self.groups = groups
        self.times = times
        self._playback = Playback(snapshot, groups, times, wait_bound_ms=wait_bound_ms, arrivals_per_ms=arrivals_per_ms)
        self._precisions = {pool: group.precision for group in groups for pool in group.pools}
        cost_ms = reading_ms + 1000 * (time.perf_counter() - began_s)
        self._kept_for_cost_ms = min(_KEPT_FOR_ITS_COST * cost_ms, _LONGEST_KEPT_MS)

    def covers(self, pools: Iterable[str], *, newest: int, now_ms: int) -> bool:
        """Return whether this forecast is recent enough for items of these pools, the last with this accept order."""
        kept_ms = _KEPT_MS if newest <= self.snapshot.sequence else _KEPT_FOR_NEW_JOBS_MS
        return abs(now_ms - self.snapshot.taken_ms) <= max(kept_ms, self._kept_for_cost_ms) and self.serves(pools)

    @property
    def pools(self) -> Iterable[str]:
        """The pools from which the slots that play the queue claim."""
        return self._precisions

    def serves(self, pools: Iterable[str]) -> bool:
        """Return whether the slots that play the queue claim from all of these pools."""
        return all(pool in self._precisions for pool in pools)

    def knows_share(self, item: WaitingItem) -> bool:
        """Return whether the share of an item is one of those that were looked at, or has no neighbors among them."""
        queue = self._playback.queues.get(item.pool)
        return queue is None or item.share in queue.all_shares or not queue.all_shares

    def position_of(self, item: WaitingItem, place: Place) -> int:
        """Return how many items of its pool are claimed before a queued item."""
        return math.floor(self._start_of(item, place)[0] + 0.5)

    def ending_of(self, item: WaitingItem, place: Place, *, now_ms: int) -> Ending | None:
        """Return when an item ends; None if its time is unknown."""
        expected = self.times.of(item.shape, pool=item.pool, precision=self._precisions[item.pool])
        if expected is None:
            return None
        wait_ms, passed_ms = 0.0, 0.0
        if item.started_ms is None:
            # Since the queue was read, a part of the wait has passed.
            wait_ms = max(0.0, self._start_of(item, place)[1] - (now_ms - self.snapshot.taken_ms))
        else:
            passed_ms = max(0, now_ms - item.started_ms)
        left_ms = wait_ms + max(0.0, expected.render_ms + expected.store_ms - passed_ms)
        own_ms = _DEVIATIONS * expected.deviation_ms
        low_ms = max(0.0, left_ms - own_ms - _LESS_WAIT * wait_ms)
        return Ending(left_ms, low_ms, left_ms + own_ms + _MORE_WAIT * wait_ms)

    def claims_after_s(self, pool: str, claims: int, *, tenant: str | None) -> float | None:
        """Return in how many seconds a pool, or a tenant in it, has so many claims; None while that is unknown."""
        queue = self._playback.queues.get(pool)
        if queue is None or not self.times.are_known:
            return None
        if tenant is None:
            return queue.curve.at(claims - 1)[1] / 1000
        shares = [share for share in queue.all_shares.values() if share.tenant.name == tenant]
        return min((share.curve.at(claims - 1)[1] / 1000 for share in shares), default=None)

    def _start_of(self, item: WaitingItem, place: Place) -> tuple[float, float]:
        queue = self._playback.queues.get(item.pool)
        if queue is None:
            return 0.0, 0.0
        name = item.lane.removeprefix(f"{item.share}|")
        return queue.start_of(item.share, name, rank=place.rank, turn=place.turn, order=item.order)
