"""Estimate when jobs that have not ended get their turn, and when they end."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from shared.job import is_large, model_of
from shared.ledger import keys
from shared.ledger.arrivals import ArrivalRate
from shared.ledger.job_forecast import Ending, ModelForecast, Place, WaitingItem
from shared.ledger.playback import SlotGroup
from shared.ledger.queue_snapshot import QueueSnapshot
from shared.ledger.render_times import RenderTimes
from shared.ledger.session import Session, to_ms
from shared.ledger.slot_kinds import SlotKind, SlotKinds

# Lanes of a job that are looked at: the one that ends last is among the last ones in accept order.
_LANES_LOOKED_AT = 16
# A queue that is full for longer may have got more slots, or lost some.
_LONGEST_RETRY_S = 300


@dataclass(frozen=True)
class Outlook:
    """The outlook of a job; see `JobView` for the fields."""

    queue_position: int | None = None
    eta_s: float | None = None
    eta_range_s: tuple[float, float] | None = None

    @classmethod
    def of(cls, positions: Collection[int], endings: Sequence[Ending | None]) -> Self:
        """Return the outlook of a job from the positions and the ends of its items; None for an unknown end."""
        position = min(positions, default=None)
        known = [ending for ending in endings if ending is not None]
        # An item without a known time says nothing about the job's end.
        if len(known) < len(endings):
            return cls(position)
        seconds = (
            round(max(getattr(end, name) for end in known) / 1000, 1) for name in ("left_ms", "low_ms", "high_ms")
        )
        eta_s, low_s, high_s = seconds
        return cls(position, eta_s, (low_s, high_s))


class Forecaster:
    """Estimates the outlook of jobs from the queue and the live slots."""

    def __init__(self, session: Session, slot_kinds: SlotKinds, *, wait_bound_s: float) -> None:
        self._session = session
        self._slot_kinds = slot_kinds
        self._wait_bound_ms = to_ms(wait_bound_s)
        # Each poll of a job would read the queue and the fleet.
        self._lock = threading.Lock()
        self._forecasts: dict[str, ModelForecast] = {}
        self._arrivals = ArrivalRate()

    def forecast(self, items: Sequence[Mapping[str, str]], *, now_ms: int) -> Outlook:
        """Return the outlook of an unfinished job; the caller is inside of `Session.commands`.

        Args:
            items: the hashes of its items, by index.
        """
        # Ended items name no pool.
        waiting = [WaitingItem.of(item) for item in items if "finished_ms" not in item and "pool" in item]
        if not waiting:
            return Outlook()
        forecast = self._forecast_of(waiting, now_ms=now_ms)
        running = [item for item in waiting if item.started_ms is not None]
        firsts, lasts = _ends_of_lanes(item for item in waiting if item.started_ms is None)
        places = self._places({item.item_id: item for item in (*firsts, *lasts)}.values(), forecast)
        positions = [forecast.position_of(item, places[item.item_id]) for item in firsts]
        endings = [
            forecast.ending_of(item, places.get(item.item_id, Place()), now_ms=now_ms) for item in (*running, *lasts)
        ]
        return Outlook.of(positions, endings)

    def _places(self, items: Collection[WaitingItem], forecast: ModelForecast) -> dict[str, Place]:
        """Return the places of queued items; one without a rank was claimed since its hash was read."""
        redis = self._session.redis
        with redis.pipeline(transaction=False) as pipe:
            for item in items:
                pipe.zrank(keys.lane(item.pool, item.lane), item.item_id)
            ranks = pipe.execute()
        places = {item.item_id: Place(rank or 0) for item, rank in zip(items, ranks, strict=True)}
        for item in items:
            if not forecast.knows_share(item):
                entry = redis.hget(keys.turn_entries(item.pool), item.share)
                turn = redis.zrank(keys.turns(item.pool), entry or "")
                places[item.item_id] = replace(places[item.item_id], turn=turn or 0)
        return places

    def _forecast_of(self, items: Sequence[WaitingItem], *, now_ms: int) -> ModelForecast:
        """Return the forecast for the model of some items; all callers share it for a while."""
        pools, newest = {item.pool for item in items}, max(item.order for item in items)
        return self._recent(model_of(items[0].pool), pools, newest=newest, now_ms=now_ms)

    def _recent(self, model: str, pools: Collection[str], *, newest: int, now_ms: int) -> ModelForecast:
        kept = self._forecasts.get(model)
        if kept is not None and kept.covers(pools, newest=newest, now_ms=now_ms):
            return kept
        # While one thread reads, the others use the last forecast: if Redis hangs, they must not wait for it in turn.
        can_wait = kept is None or not kept.serves(pools)
        if not self._lock.acquire(blocking=can_wait):
            assert kept is not None
            return kept
        try:
            kept = self._forecasts.get(model)
            if kept is None or not kept.covers(pools, newest=newest, now_ms=now_ms):
                kept = self._forecasts[model] = self._read(model, pools, now_ms=now_ms)
            return kept
        finally:
            self._lock.release()

    def room_after_s(self, pool: str, items: int, *, tenant: str | None = None) -> int | None:
        """Return in how many seconds there may be room for more items: 1 to 300, or None while that is unknown.

        Args:
            items: number of queued items of the pool, or of a tenant in it, that have to be claimed first.
        """
        now_ms = self._session.now_ms()
        with self._session.commands():
            forecast = self._recent(model_of(pool), {pool}, newest=0, now_ms=now_ms)
        seconds = forecast.claims_after_s(pool, items, tenant=tenant)
        return None if seconds is None else min(max(math.ceil(seconds), 1), _LONGEST_RETRY_S)

    def _read(self, model: str, pools: Collection[str], *, now_ms: int) -> ModelForecast:
        began_s = time.perf_counter()
        kinds = self._slot_kinds.count_in_commands(now_ms=now_ms)
        groups = _groups({kind: count for kind, count in kinds.items() if kind.model == model and kind.takes_work})
        missing = frozenset(pools).difference(*(group.pools for group in groups))
        if missing:
            # As if one slot came.
            groups.append(SlotGroup(missing, precision="", count=1))
        served = sorted(frozenset().union(*(group.pools for group in groups)))
        snapshot = QueueSnapshot.read(self._session, served, now_ms=now_ms)
        paces_ms = {pool.pool: pool.pace_ms for pool in snapshot.pools if pool.pace_ms is not None}
        times = RenderTimes(self._session.redis.hgetall(keys.times(model)), paces_ms)
        self._arrivals.note(now_ms, snapshot.sequence)
        return ModelForecast(
            snapshot,
            groups,
            times,
            wait_bound_ms=self._wait_bound_ms,
            arrivals_per_ms=self._arrivals.per_ms,
            reading_ms=1000 * (time.perf_counter() - began_s),
        )


def _ends_of_lanes(items: Iterable[WaitingItem]) -> tuple[list[WaitingItem], list[WaitingItem]]:
    """Return the first items of the oldest lanes, and the last items of the newest lanes."""
    lanes: dict[tuple[str, str], list[WaitingItem]] = {}
    for item in sorted(items, key=lambda item: item.order):
        lanes.setdefault((item.pool, item.lane), []).append(item)
    firsts = [lane[0] for lane in lanes.values()]
    lasts = sorted((lane[-1] for lane in lanes.values()), key=lambda item: item.order)
    return firsts[:_LANES_LOOKED_AT], lasts[-_LANES_LOOKED_AT:]


def _groups(kinds: Mapping[SlotKind, int]) -> list[SlotGroup]:
    """Return slots by the pools that they claim from: of those of large items, if no others have more memory."""
    largest_gib: dict[str, int] = {}
    for kind in kinds:
        for pool in kind.pools:
            largest_gib[pool] = max(largest_gib.get(pool, 0), kind.memory_gib)
    counts: Counter[tuple[frozenset[str], str]] = Counter()
    for kind, count in kinds.items():
        pools = (pool for pool in kind.pools if not is_large(pool) or kind.memory_gib == largest_gib[pool])
        counts[frozenset(pools), kind.precision] += count
    return [SlotGroup(pools, precision, count) for (pools, precision), count in counts.items()]
