"""Count the live slots by what they are, at a cost that does not grow with the fleet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from shared.errors import LedgerRefused
from shared.job import ENGINES, FEATURES, Engine, Feature, pools
from shared.ledger import keys
from shared.ledger.bulk_reads import in_parts
from shared.ledger.connection import mapped_errors
from shared.ledger.session import Session
from shared.ledger.workers import DRAINING, FAULTY, SLOT_TTL_MS, known_names

# Slots corrected in one step, between which Redis serves others.
_CORRECTED_AT_ONCE = 500
# Slots of an earlier version change their reports without the index. Each correction looks at this many of the slots,
# which are all of a small fleet.
_SAMPLE = 64
_CORRECTED_EACH_MS = 1000


@dataclass(frozen=True)
class SlotKind:
    """What a slot is, apart from its name and its adapters; see `SlotView` for the fields.

    Attributes:
        memory_gib: memory of the device in whole GiB; 0 for a CPU, or if its version does not report it.
        is_corrupted: whether restored parameters differ from the checkpoint's.
    """

    model: str
    state: str
    revision: str
    precision: str
    engines: tuple[Engine, ...]
    features: tuple[Feature, ...] | None
    memory_gib: int
    reads_compact: bool
    is_corrupted: bool

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools whose items slots of this kind claim."""
        return pools(self.model, self.engines, self.features or ())

    @property
    def takes_work(self) -> bool:
        return self.state not in (FAULTY, DRAINING)


class SlotKinds:
    """The kinds of the live slots of one Redis, which the scripts count."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._corrected_ms: int | None = None

    def count(self) -> Counter[SlotKind]:
        """Return how many live slots there are of each kind."""
        now = self._session.now_ms()
        with self._session.commands():
            return self.count_in_commands(now_ms=now)

    def count_in_commands(self, *, now_ms: int) -> Counter[SlotKind]:
        """Count as `count` does, for a caller that is inside of `Session.commands`."""
        counted = self._read(now_ms)
        if counted.may_be_wrong and self._may_correct(now_ms):
            # A Redis that takes no writes keeps its last counts.
            with suppress(LedgerRefused), mapped_errors():
                self._correct(counted)
            counted = self._read(now_ms)
        return counted.kinds

    def _read(self, now_ms: int) -> _Counted:
        redis = self._session.redis
        # No transaction, which a full Redis refuses: if a slot changes between two reads, the counts are corrected.
        with redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.KINDS).zcard(keys.SLOTS)
            # Dead slots, which the next heartbeats forget; those of the future died before the clock went back.
            pipe.zrangebyscore(keys.SLOTS, "-inf", f"({now_ms - SLOT_TTL_MS}")
            pipe.zrangebyscore(keys.SLOTS, f"({now_ms + SLOT_TTL_MS}", "+inf")
            kinds, known, old, future = pipe.execute()
        dead = [*old, *future]
        if known == len(dead):
            return _Counted.of({}, live=0)
        counts = Counter({kind: int(count) for kind, count in kinds.items()})
        if dead:
            counts.subtract(kind for kind in redis.hmget(keys.SLOT_KINDS, dead) if kind is not None)
        return _Counted.of(counts, live=known - len(dead))

    def _may_correct(self, now_ms: int) -> bool:
        if self._corrected_ms is not None and abs(now_ms - self._corrected_ms) < _CORRECTED_EACH_MS:
            return False
        self._corrected_ms = now_ms
        return True

    def _correct(self, counted: _Counted) -> None:
        redis, kinds = self._session.redis, counted.kinds.total()
        if kinds == counted.live:
            names = redis.zrandmember(keys.SLOTS, _SAMPLE)
        else:
            # Slots are missing, or some have gone.
            names = redis.zrange(keys.SLOTS if kinds < counted.live else keys.SLOT_NAMES, 0, -1)
        for part in in_parts(names, _CORRECTED_AT_ONCE):
            self._session.run_in_commands("check_slots", slots=part)


@dataclass(frozen=True)
class _Counted:
    """One reading of the counts.

    Attributes:
        live: number of live slots; the kinds may count others.
        includes_earlier_version: whether a slot does not keep the index.
    """

    live: int
    kinds: Counter[SlotKind]
    includes_earlier_version: bool

    @classmethod
    def of(cls, counts: Mapping[str, int], *, live: int) -> _Counted:
        kinds = Counter[SlotKind]()
        includes_earlier_version = False
        for text, count in counts.items():
            if count > 0:
                kind, keeps_index = parse_kind(text)
                kinds[kind] += count
                includes_earlier_version |= not keeps_index
        return cls(live, kinds, includes_earlier_version)

    @property
    def may_be_wrong(self) -> bool:
        return self.includes_earlier_version or self.kinds.total() != self.live


def parse_kind(text: str) -> tuple[SlotKind, bool]:
    """Read a kind as scripts/slot_kinds.lua stores it, and whether its slots keep the index themselves.

    Fields that a later version adds behind them are left out.
    """
    model, state, revision, precision, engines, features, memory_gib, *flags = json.loads(text)
    reads_compact, is_corrupted, keeps_index = flags[:3]
    kind = SlotKind(
        model=model,
        state=state,
        revision=revision or "",
        precision=precision or "",
        engines=known_names(ENGINES, engines or ""),
        features=None if features is False else known_names(FEATURES, features),
        memory_gib=int(memory_gib),
        reads_compact=reads_compact,
        is_corrupted=is_corrupted,
    )
    return kind, keeps_index is True
