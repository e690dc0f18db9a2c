"""Register workers in the ledger: which are alive, which model each has loaded, and whose device keeps failing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shared.job import ENGINES, FEATURES, Engine, Feature, is_large, memory_gib, pools
from shared.ledger import keys
from shared.ledger.connection import Client
from shared.ledger.metric_sums import batch_arguments
from shared.ledger.session import Session, to_ms
from shared.metrics.batches import Batch

_Name = TypeVar("_Name", bound=str)

#: Lifetime of the report of a storage outage, in ms; a report costs each worker one probe.
OUTAGE_REPORT_MS = 300_000

#: A slot whose last heartbeat is older counts as dead, in ms.
SLOT_TTL_MS = 15_000

#: States of a slot that lives and takes no work: because its device keeps failing, or because its process stops.
FAULTY, DRAINING = "faulty", "draining"

_UNHEALTHY_READ = 1000

# Field of a heartbeat that versions before the compact form do not send.
_READS_COMPACT = "reads_compact"


@dataclass(frozen=True)
class SlotView:
    """One worker's last report.

    Attributes:
        engines: the engines that it offers, without those that this version does not know.
        features: what it can do beyond its engines, known features only; None if its version does not report them.
        warm: key of the adapters that it has merged.
        item: id of the item that it renders; empty if it renders nothing.
        corrupted: number of restored parameters that differ from the checkpoint's; any but 0 is a defect.
        reads_compact: whether it reads jobs in the compact form; see `shared.ledger.compact_form`.
        memory_bytes: memory of its device; 0 for a CPU, or if its version does not report it.
        adapters: names of the adapters that it has merged, as the rows of `usage` have them; empty if unknown.
        gpu_memory_used_bytes: memory of its GPU that is in use, by all processes; None if it reports none.
        gpu_utilization: part of the time in which its GPU works, 0 to 1; None if it reports none.
    """

    name: str
    model: str
    state: str
    device: str
    revision: str
    precision: str
    engines: tuple[Engine, ...]
    features: tuple[Feature, ...] | None
    warm: str
    item: str
    corrupted: int
    reads_compact: bool
    memory_bytes: int = 0
    adapters: str = ""
    gpu_memory_used_bytes: int | None = None
    gpu_utilization: float | None = None

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools whose items this slot claims."""
        return pools(self.model, self.engines, self.features or ())


@dataclass(frozen=True)
class BaseModelInfo:
    """A loaded base model: its identity and the (out, in) shape of each linear layer, by BFL name."""

    revision: str
    layers: Mapping[str, tuple[int, int]]


class _HasRevision(Protocol):
    """The part of a slot, or of a kind of slots, that says which base model it has loaded."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str: ...


class WorkerRegistry:
    """The slots, base models and device faults that workers report to one Redis."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def beat(self, slot: str, report: Mapping[str, str], *, batch: Batch | None = None) -> int:
        """Store one heartbeat of a slot, with its report; it counts as dead `SLOT_TTL_MS` after the last one.

        Returns the number of slots.

        Args:
            batch: what the slot's process counted; see `MetricSums.add`.
        """
        slots: int = self._session.run(
            "beat",
            slot=slot,
            report={**report, _READS_COMPACT: "1"},
            slot_ttl_ms=SLOT_TTL_MS,
            large_pools=_large_pools(report),
            memory_gib=memory_gib(int(report.get("memory_bytes", 0))),
            batch=batch_arguments(batch),
        )
        return slots

    def remove(self, slot: str, *, batch: Batch | None = None) -> None:
        """Remove a slot that stops from the list, before its last heartbeat expires; `batch` as in `beat`."""
        self._session.run("remove_slot", slot=slot, batch=batch_arguments(batch))

    def live_slots(self) -> list[SlotView]:
        """Return the slots whose heartbeat is fresh; for a large fleet, count them by kind or list them in pages."""
        now = self._session.now_ms()
        with self._session.commands():
            # A heartbeat far in the future came before the clock went back.
            names = self._session.redis.zrangebyscore(keys.SLOTS, now - SLOT_TTL_MS, now + SLOT_TTL_MS)
            return read_live(self._session.redis, names, now_ms=now)

    def unhealthy_slots(self) -> list[SlotView]:
        """Return the live slots whose device keeps failing or whose base weights are corrupted, a thousand at most."""
        now = self._session.now_ms()
        with self._session.commands():
            names = self._session.redis.zrange(keys.UNHEALTHY_SLOTS, 0, _UNHEALTHY_READ - 1)
            slots = read_live(self._session.redis, names, now_ms=now)
        return [slot for slot in slots if slot.state == FAULTY or slot.corrupted]

    def slots_may_be_missing(self) -> bool:
        """Return whether an earlier look at the slots may have missed living ones, because Redis had stalled."""
        with self._session.commands():
            return bool(self._session.redis.exists(keys.SLOTS_MISSING))

    def publish_base_model(self, model: str, *, revision: str, layers: Mapping[str, tuple[int, int]]) -> None:
        """Publish the base model that a worker has loaded; the API compares adapter headers with its layers."""
        with self._session.commands():
            self._session.redis.set(keys.base(model), json.dumps({"revision": revision, "layers": layers}))

    def base_model(self, model: str, slots: Iterable[_HasRevision]) -> BaseModelInfo | None:
        """Return the base model that these slots have loaded; None if no slot has one, or if their revisions differ."""
        with self._session.commands():
            raw = self._session.redis.get(keys.base(model))
        data = None if raw is None else json.loads(str(raw))
        # With different revisions it is unknown which slot will render, so nothing is checked.
        if data is None or {slot.revision for slot in slots if slot.model == model} != {data["revision"]}:
            return None
        return BaseModelInfo(
            revision=data["revision"], layers={name: (rows, cols) for name, (rows, cols) in data["layers"].items()}
        )

    def report_storage_outage(self, *, is_new: bool) -> None:
        """Make every worker probe the storage before its next claim, for the next `OUTAGE_REPORT_MS`.

        Args:
            is_new: False leaves an unexpired report as it is: a worker that has probed the storage after it need not
                probe again.
        """
        with self._session.commands():
            self._session.redis.set(keys.STORAGE_OUTAGE, uuid.uuid4().hex, px=OUTAGE_REPORT_MS, nx=not is_new)

    def storage_outage_reported(self) -> bool:
        """Return whether a worker reported, at most `OUTAGE_REPORT_MS` ago, that it could not reach the storage."""
        with self._session.commands():
            return bool(self._session.redis.exists(keys.STORAGE_OUTAGE))

    def record_fault(self, slot: str, item_id: str, *, window_s: float) -> None:
        """Record that a slot's device failed on an item; the record expires after `window_s`."""
        now = self._session.now_ms()
        with self._session.commands(), self._session.redis.pipeline(transaction=True) as pipe:
            # By item: an item on which a device fails twice counts once, because the item may be at fault.
            pipe.zadd(keys.faults(slot), {item_id: now})
            pipe.pexpire(keys.faults(slot), to_ms(window_s))
            pipe.execute()

    def count_faults(self, slot: str, *, window_s: float) -> int:
        """Count the different items on which the slot's device failed in the last `window_s` seconds."""
        now, window_ms = self._session.now_ms(), to_ms(window_s)
        with self._session.commands():
            # A fault far in the future was recorded before the clock went back.
            return int(self._session.redis.zcount(keys.faults(slot), now - window_ms, now + window_ms))


def read_live(client: Client, names: Collection[str], *, now_ms: int) -> list[SlotView]:
    """Read the reports of those of these slots whose last heartbeat is fresh at `now_ms`."""
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.zscore(keys.SLOTS, name).hgetall(keys.slot(name))
        replies = pipe.execute()
    # A report may expire between two reads.
    return [
        parse_slot(name, report)
        for name, beat_ms, report in zip(names, replies[::2], replies[1::2], strict=True)
        if report and beat_ms is not None and abs(now_ms - beat_ms) <= SLOT_TTL_MS
    ]


def parse_slot(name: str, raw: Mapping[str, str]) -> SlotView:
    """Read the hash in which a slot's last report is stored."""
    return SlotView(
        name=name,
        model=raw["model"],
        state=raw["state"],
        device=raw["device"],
        revision=raw["revision"],
        precision=raw["precision"],
        engines=known_names(ENGINES, raw["engines"]),
        # Workers of earlier versions claim only from the plain pools of their engines.
        features=known_names(FEATURES, raw["features"]) if "features" in raw else None,
        warm=raw["warm"],
        item=raw["item"],
        # The stored field keeps its first name: workers and APIs of several versions share one Redis.
        corrupted=int(raw["base_drift"]),
        reads_compact=_READS_COMPACT in raw,
        memory_bytes=int(raw.get("memory_bytes", 0)),
        adapters=raw.get("adapters", ""),
        # Empty while the load is unknown.
        gpu_memory_used_bytes=int(raw["gpu_memory_used_bytes"]) if raw.get("gpu_memory_used_bytes") else None,
        gpu_utilization=float(raw["gpu_utilization"]) if raw.get("gpu_utilization") else None,
    )


def _large_pools(report: Mapping[str, str]) -> list[str]:
    """Return the pools of large items that a slot serves if no live slot has more memory."""
    # A slot that takes no work must not keep others from these items.
    if "model" not in report or report.get("state") == FAULTY:
        return []
    engines, features = (
        known_names(ENGINES, report.get("engines", "")),
        known_names(FEATURES, report.get("features", "")),
    )
    return [name for name in pools(report["model"], engines, features) if is_large(name)]


def known_names(names: Sequence[_Name], reported: str) -> tuple[_Name, ...]:
    """Return the reported names that this version knows."""
    # A worker of a newer version may offer more; no job of this version can name them.
    offered = reported.split(",")
    return tuple(name for name in names if name in offered)
