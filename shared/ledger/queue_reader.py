"""Read how many items wait and run, by tenant and adapters, at a cost that does not grow with the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, NamedTuple

from shared.catalog import MODELS
from shared.job import ENGINES, FEATURES, Engine, pools
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import keys
from shared.ledger.bulk_reads import in_parts, read_each
from shared.ledger.connection import Client
from shared.ledger.session import Session
from shared.ledger.usage_rows import OTHER

# Model and engine of each pool.
_POOLS: Final[Mapping[str, tuple[str, Engine]]] = {
    pool: (model, engine) for model, engine in product(MODELS, ENGINES) for pool in pools(model, [engine], FEATURES)
}
_PRIORITIES: Final = range(10)
# Bounds of one reading. What is beyond them counts in the sums, and in the rows without adapters of tenants.
_TENANTS_READ: Final = 1000
_LANES_READ: Final = 500
_LEASES_READ: Final = 1000

# Redis serves nobody else during one step.
_TENANTS_PER_STEP: Final = 50
# A reading of a full queue takes Redis 15 ms and this process 90 ms, and several people may watch it.
_KEPT_MS: Final = 1000

# Of `images:{period}`, see scripts/usage.lua.
_PERIOD_MS: Final = 10_000
_PERIODS: Final = 6
_ALL: Final = "*"


class Group(NamedTuple):
    """What items are counted by; `adapters` is empty for the items of which only the rest is known."""

    tenant: str
    model: str
    engine: Engine
    adapters: str


@dataclass(frozen=True)
class Load:
    """How many items of a group wait and run."""

    group: Group
    queued: int
    running: int


@dataclass(frozen=True)
class QueueOverview:
    """The queue at one moment; its parts are read one after the other, so they may contradict each other a little.

    Attributes:
        loads: the groups with most queued items first; those of a tenant add up to its items.
        images_per_minute: images that were finished in the last minute.
    """

    queued: int
    running: int
    images_per_minute: float
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class QueueSums:
    """How many items wait and run.

    Attributes:
        images_per_minute: images that were finished in the last minute.
        pace_s: seconds that a slot takes for an image, on average over the pools; None until there is one.
    """

    queued: int
    running: int
    images_per_minute: float
    pace_s: float | None


class QueueReader:
    """The queue of one Redis; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # With the time at which it was read.
        self._kept: tuple[int, QueueOverview] | None = None

    def overview(self, *, tenant: str | None = None) -> QueueOverview:
        """Count the items of a tenant; None counts those of all.

        Of a thousand tenants, of the five hundred oldest combinations of adapters and of a thousand running items, the
        groups are known. The others count in groups without adapters, or only in the sums. The queue of all may be a
        second old.
        """
        now = self._session.now_ms()
        if tenant is None and self._kept is not None and 0 <= now - self._kept[0] <= _KEPT_MS:
            return self._kept[1]
        with self._session.commands():
            reading = _Reading(self._session.redis, tenant)
            queued, running = reading.count_all()
            overview = QueueOverview(queued, running, self._images_per_minute(tenant, now), reading.loads())
        if tenant is None:
            self._kept = now, overview
        return overview

    def sums(self, tenants: Collection[str | None]) -> dict[str | None, QueueSums]:
        """Add up the items of each tenant, at a small part of the cost of `overview`; None stands for all tenants."""
        now = self._session.now_ms()
        names = [tenant for tenant in tenants if tenant is not None]
        found: dict[str | None, QueueSums] = {}
        for part in in_parts([*names], _TENANTS_PER_STEP) if names else [[]]:
            paces_ms, sums_of_all, sums = self._session.run(
                "queue_sums", pools=list(_POOLS), tenants=part, periods=list(map(str, _periods(now)))
            )
            pace_s = sum(paces_ms) / len(paces_ms) / 1000 if paces_ms else None
            for tenant, (queued, running, images) in zip([None, *part], [sums_of_all, *sums], strict=True):
                found[tenant] = QueueSums(queued, running, _per_minute(images, now), pace_s)
        return found

    def _images_per_minute(self, tenant: str | None, now_ms: int) -> float:
        with self._session.redis.pipeline(transaction=False) as pipe:
            for period in _periods(now_ms):
                pipe.hget(keys.images(period), _ALL if tenant is None else tenant)
            return _per_minute(sum(int(count or 0) for count in pipe.execute()), now_ms)


def _periods(now_ms: int) -> range:
    last = now_ms // _PERIOD_MS
    return range(last - _PERIODS, last + 1)


def _per_minute(images: int, now_ms: int) -> float:
    # The present period has only begun.
    return round(60_000 * images / (_PERIODS * _PERIOD_MS + now_ms % _PERIOD_MS), 1)


class _Reading:
    """One reading of the queue, inside of `Session.commands`."""

    def __init__(self, client: Client, tenant: str | None) -> None:
        self._client = client
        self._tenant = tenant
        # Queued items by pool and share, and running ones by pool and tenant.
        self._shares = self._read_shares()
        self._busy = self._read_busy()

    def count_all(self) -> tuple[int, int]:
        """Return how many items wait and run, beyond the bounds too."""
        if self._tenant is not None:
            return sum(self._shares.values()), sum(self._busy.values())
        queued = self._ask(("zcard", keys.pending(pool)) for pool in _POOLS)
        return sum(queued), int(self._client.zcard(keys.LEASES))

    def loads(self) -> tuple[Load, ...]:
        queued, running = self._queued_groups(), self._running_groups()
        loads = [Load(group, queued[group], running[group]) for group in {*queued, *running}]
        present = (load for load in loads if load.queued > 0 or load.running > 0)
        return tuple(sorted(present, key=lambda load: (-load.queued, -load.running, load.group)))

    def _read_shares(self) -> dict[tuple[str, str], int]:
        if self._tenant is None:
            replies = self._ask(("hrandfield", keys.shares(pool), _TENANTS_READ, True) for pool in _POOLS)
            return {
                (pool, share): int(count)
                for pool, flat in zip(_POOLS, replies, strict=True)
                for share, count in zip(flat[::2], flat[1::2], strict=True)
            }
        names = [f"{priority}|{self._tenant}" for priority in _PRIORITIES]
        replies = self._ask(("hmget", keys.shares(pool), names) for pool in _POOLS)
        return {
            (pool, share): int(count)
            for pool, counts in zip(_POOLS, replies, strict=True)
            for share, count in zip(names, counts, strict=True)
            if count is not None
        }

    def _read_busy(self) -> dict[tuple[str, str], int]:
        if self._tenant is None:
            replies = self._ask(("hrandfield", keys.busy(pool), _TENANTS_READ, True) for pool in _POOLS)
        else:
            counts = self._ask(("hget", keys.busy(pool), self._tenant) for pool in _POOLS)
            replies = [[] if count is None else [self._tenant, count] for count in counts]
        return {
            (pool, tenant): int(count)
            for pool, flat in zip(_POOLS, replies, strict=True)
            for tenant, count in zip(flat[::2], flat[1::2], strict=True)
        }

    def _queued_groups(self) -> Counter[Group]:
        """Count the queued items of the lanes that are read, and the others of their tenants."""
        groups: Counter[Group] = Counter()
        lanes = self._find_lanes()
        sizes = self._ask(("zcard", keys.lane(pool, lane)) for pool, lane in lanes)
        heads = self._ask(("zrange", keys.lane(pool, lane), 0, 0) for pool, lane in lanes)
        adapters = self._adapters_of([head[0] if head else "" for head in heads])
        left = Counter(self._shares)
        for (pool, lane), size, names in zip(lanes, sizes, adapters, strict=True):
            share = _share_of(lane)
            groups[_group(pool, _tenant_of(share), names)] += size
            left[pool, share] -= size
        for (pool, share), count in left.items():
            groups[_group(pool, _tenant_of(share), "")] += max(count, 0)
        return groups

    def _find_lanes(self) -> list[tuple[str, str]]:
        """Return lanes with their pools: the oldest of each share, of the shares with most items first."""
        shares = [share for share, _ in Counter(self._shares).most_common(_LANES_READ)]
        each = _LANES_READ // max(1, len(shares))
        found = self._ask(("zrange", keys.lanes(pool, share), 0, each - 1) for pool, share in shares)
        return [(pool, lane) for (pool, _), names in zip(shares, found, strict=True) for lane in names]

    def _running_groups(self) -> Counter[Group]:
        """Count the running items that are read, and the others of their tenants."""
        groups: Counter[Group] = Counter()
        items = self._client.zrange(keys.LEASES, 0, _LEASES_READ - 1)
        records = self._ask(("hmget", keys.item(item), ["pool", "tenant"]) for item in items)
        left = Counter(self._busy)
        for (pool, tenant), adapters in zip(records, self._adapters_of(items), strict=True):
            # An item that ended in the meantime has neither.
            if pool in _POOLS and (self._tenant is None or tenant == self._tenant):
                groups[_group(pool, tenant or DEFAULT_TENANT, adapters)] += 1
                left[pool, tenant] -= 1
        for (pool, tenant), count in left.items():
            groups[_group(pool, tenant, "")] += max(count, 0)
        return groups

    def _adapters_of(self, items: Sequence[str]) -> list[str]:
        """Return the names of the adapters of each item."""
        names = self._ask(("hget", keys.job(item.rpartition(":")[0]), "adapters") for item in items)
        return [name or OTHER for name in names]

    def _ask(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        return read_each(self._client, commands)


def _group(pool: str, tenant: str, adapters: str) -> Group:
    model, engine = _POOLS[pool]
    return Group(tenant, model, engine, adapters)


def _share_of(lane: str) -> str:
    priority, tenant, _ = lane.split("|", 2)
    return f"{priority}|{tenant}"


def _tenant_of(share: str) -> str:
    return share.partition("|")[2]
