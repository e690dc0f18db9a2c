"""Estimate when jobs that have not ended get their turn, and when they end."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import redis

from shared.errors import LedgerUnavailable
from shared.job import is_large, model_of
from shared.ledger import keys
from shared.ledger.arrivals import ArrivalRate
from shared.ledger.bulk_reads import read_each
from shared.ledger.job_forecast import Ending, ModelForecast, Place, WaitingItem
from shared.ledger.new_items import NewItems
from shared.ledger.playback import SlotGroup
from shared.ledger.queue_snapshot import QueueSnapshot
from shared.ledger.render_times import RenderTimes
from shared.ledger.session import Session, to_ms
from shared.ledger.slot_kinds import SlotKind, SlotKinds

# Lanes of a job that are looked at: the one that ends last is among the last ones in accept order.
_LANES_LOOKED_AT = 16
# A queue that is full for longer may have got more slots, or lost some.
_LONGEST_RETRY_S = 300
# A forecast that failed would fail again for each poll.
_PAUSE_AFTER_FAILURE_S = 10.0
# While the first forecast is read, others are answered without one after this time.
_LONGEST_WAIT_S = 1.0
# What fails for the caller's own commands too.
_NO_ANSWER = (redis.ConnectionError, redis.TimeoutError, LedgerUnavailable)

logger = logging.getLogger("flux2.ledger.outlook")


class _NoForecast(Exception):
    """There is no forecast now; why was logged, or it is being read."""


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


@dataclass(frozen=True)
class _WaitingJob:
    """The items of a job that decide its outlook, and the forecast for their model.

    Attributes:
        firsts: queued items that may start next.
        lasts: queued items that may end last.
    """

    forecast: ModelForecast
    running: Sequence[WaitingItem]
    firsts: Sequence[WaitingItem]
    lasts: Sequence[WaitingItem]

    def outlook(self, places: Mapping[str, Place], *, now_ms: int) -> Outlook:
        positions = [self.forecast.position_of(item, places[item.item_id]) for item in self.firsts]
        endings = [
            self.forecast.ending_of(item, places.get(item.item_id, Place()), now_ms=now_ms)
            for item in (*self.running, *self.lasts)
        ]
        return Outlook.of(positions, endings)


class Forecaster:
    """Estimates the outlook of jobs from the queue and the live slots."""

    def __init__(self, session: Session, slot_kinds: SlotKinds, *, wait_bound_s: float) -> None:
        self._session = session
        self._slot_kinds = slot_kinds
        self._wait_bound_ms = to_ms(wait_bound_s)
        # Each poll of a job would read the queue and the fleet.
        self._lock = threading.Lock()
        self._forecasts: dict[str, ModelForecast] = {}
        # Until when no forecast of a model is tried, by the monotonic clock.
        self._paused_until_s: dict[str, float] = {}
        self._arrivals = ArrivalRate()

    def forecast(self, items: Sequence[Mapping[str, str]], *, now_ms: int) -> Outlook:
        """Return the outlook of one unfinished job; see `forecast_each`.

        Args:
            items: the hashes of its items, by index.
        """
        return self.forecast_each([items], now_ms=now_ms)[0]

    def forecast_each(self, jobs: Sequence[Sequence[Mapping[str, str]]], *, now_ms: int) -> list[Outlook]:
        """Return the outlook of each unfinished job, in few round trips; the caller is inside of `Session.commands`.

        Args:
            jobs: the hashes of the items of each job, or of those that start next and end last.

        Raises:
            redis.ConnectionError, redis.TimeoutError, LedgerUnavailable: Redis does not answer; any other failure gives
                an empty outlook, because a job must be shown in any case.
        """
        outlooks = [Outlook()] * len(jobs)
        waiting: dict[int, _WaitingJob] = {}
        for number, items in enumerate(jobs):
            with _left_out_if_unknown():
                if job := self._waiting_job(items, now_ms=now_ms):
                    waiting[number] = job
        with _left_out_if_unknown():
            places = self._places(waiting.values())
            for number, job in waiting.items():
                with _left_out_if_unknown():
                    outlooks[number] = job.outlook(places, now_ms=now_ms)
        return outlooks

    def _waiting_job(self, items: Sequence[Mapping[str, str]], *, now_ms: int) -> _WaitingJob | None:
        # Ended items name no pool.
        waiting = [WaitingItem.of(item) for item in items if "finished_ms" not in item and "pool" in item]
        if not waiting:
            return None
        forecast = self._forecast_of(waiting, now_ms=now_ms)
        running = [item for item in waiting if item.started_ms is not None]
        firsts, lasts = _ends_of_lanes(item for item in waiting if item.started_ms is None)
        return _WaitingJob(forecast, running, firsts, lasts)

    def _places(self, jobs: Iterable[_WaitingJob]) -> dict[str, Place]:
        """Return the places of queued items; one without a rank was claimed since its hash was read."""
        items = {item.item_id: (item, job) for job in jobs for item in (*job.firsts, *job.lasts)}
        redis = self._session.redis
        ranks = read_each(
            redis, (("zrank", keys.lane(item.pool, item.lane), name) for name, (item, _) in items.items())
        )
        places = {name: Place(rank or 0) for name, rank in zip(items, ranks, strict=True)}
        far = [item for item, job in items.values() if not job.forecast.knows_share(item)]
        entries = read_each(redis, (("hget", keys.turn_entries(item.pool), item.share) for item in far))
        turns = read_each(
            redis,
            (("zrank", keys.turns(item.pool), entry or "") for item, entry in zip(far, entries, strict=True)),
        )
        for item, turn in zip(far, turns, strict=True):
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
        usable = kept if kept is not None and kept.serves(pools) else None
        if not self._lock.acquire(timeout=_LONGEST_WAIT_S if usable is None else 0):
            if usable is None:
                raise _NoForecast
            return usable
        try:
            kept = self._forecasts.get(model)
            if kept is not None and kept.covers(pools, newest=newest, now_ms=now_ms):
                return kept
            if time.monotonic() < self._paused_until_s.get(model, 0.0):
                raise _NoForecast
            # With those of the last forecast: jobs of pools that no slot serves would replace each other's forecasts.
            read = self._read(model, {*pools, *(kept.pools if kept else ())}, now_ms=now_ms)
            self._forecasts[model] = read
            return read
        except (*_NO_ANSWER, _NoForecast):
            raise
        except Exception:
            self._paused_until_s[model] = time.monotonic() + _PAUSE_AFTER_FAILURE_S
            raise
        finally:
            self._lock.release()

    def room_after_s(self, pool: str, items: int, *, tenant: str | None = None) -> int | None:
        """Return in how many seconds there may be room for more items: 1 to 300, or None while that is unknown.

        Args:
            items: number of queued items of the pool, or of a tenant in it, that have to be claimed first.
        """
        try:
            now_ms = self._session.now_ms()
            with self._session.commands():
                forecast = self._recent(model_of(pool), {pool}, newest=0, now_ms=now_ms)
            seconds = forecast.claims_after_s(pool, items, tenant=tenant)
        except (LedgerUnavailable, _NoForecast):
            # The caller's answer is that there is no room.
            return None
        except Exception:
            logger.exception("the time until there is room is left out: the queue cannot be read")
            return None
        return None if seconds is None else min(max(math.ceil(seconds), 1), _LONGEST_RETRY_S)

    def estimate(self, new: NewItems) -> tuple[Outlook, float | None]:
        """Return the outlook of items that may come, and the seconds for which they occupy devices, None if unknown.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        now_ms = self._session.now_ms()
        outlook, device_s = Outlook(), None
        with self._session.commands(), _left_out_if_unknown():
            # Calls in a loop must not read the queue each time.
            known = self._recent(model_of(new.pool), {new.pool}, newest=0, now_ms=now_ms)
            forecast = ModelForecast(
                new.add_to(known.snapshot),
                known.groups,
                known.times,
                wait_bound_ms=self._wait_bound_ms,
                arrivals_per_ms=self._arrivals.per_ms,
            )
            lasts = new.last_items(known.snapshot)
            endings = [forecast.ending_of(item, place, now_ms=now_ms) for item, place in lasts]
            outlook, device_s = Outlook.of([], endings), new.device_s(known.groups, known.times)
        return outlook, device_s

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


@contextmanager
def _left_out_if_unknown() -> Iterator[None]:
    """Go on after the context if the outlook of a job cannot be made; it is then shown without one."""
    try:
        yield
    except _NO_ANSWER:
        raise
    except _NoForecast:
        pass
    except Exception:
        logger.exception("the outlook of a job is left out: its records or the queue cannot be read")


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
