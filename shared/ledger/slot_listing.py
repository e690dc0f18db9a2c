"""List the live slots in the order of their names, one page at a time, with the items that they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shared.job import Progress, State
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import keys
from shared.ledger.claim import split_item_id
from shared.ledger.session import Session
from shared.ledger.usage_rows import OTHER
from shared.ledger.workers import SLOT_TTL_MS, SlotView, read_live

# Names that one command adds to the index.
_NAMES_AT_ONCE = 1000
_ITEM_FIELDS = ("state", "slot", "tenant", "attempt", "started_ms", "progress")


@dataclass(frozen=True)
class RunningItem:
    """The item that a slot renders, or stores if it renders none.

    Attributes:
        adapters: their names, as the rows of `usage` have them.
        progress: None before the first renewal of its lease.
    """

    job_id: str
    index: int
    tenant: str
    adapters: str
    attempt: int
    started_ms: int
    progress: Progress | None


@dataclass(frozen=True)
class ListedSlot:
    """A live slot, and its item if it has one."""

    slot: SlotView
    item: RunningItem | None


@dataclass(frozen=True)
class SlotPage:
    """A page of the listing.

    Attributes:
        slots: may be fewer than asked for, even none, while others follow.
        next_after: cursor of the next page; None on the last.
    """

    slots: tuple[ListedSlot, ...]
    next_after: str | None


class SlotListing:
    """The slots of one Redis; a page costs the same for any number of them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(self, *, after: str | None = None, limit: int) -> SlotPage:
        """Read at most `limit` live slots whose names follow `after`; None begins with the first."""
        now = self._session.now_ms()
        with self._session.commands():
            self._add_missing_names()
            names = self._names(after, limit + 1)
            # A name may stay in the index for a while after its slot has died.
            slots = read_live(self._session.redis, names[:limit], now_ms=now)
            items = self._read_items(slots)
        listed = tuple(ListedSlot(slot, item) for slot, item in zip(slots, items, strict=True))
        return SlotPage(listed, names[limit - 1] if len(names) > limit else None)

    def count(self) -> int:
        """Count the live slots."""
        now = self._session.now_ms()
        with self._session.commands():
            return int(self._session.redis.zcount(keys.SLOTS, now - SLOT_TTL_MS, now + SLOT_TTL_MS))

    def _names(self, after: str | None, count: int) -> list[str]:
        first = "-" if after is None else f"({after}"
        names: list[str] = self._session.redis.zrangebylex(keys.SLOT_NAMES, first, "+", start=0, num=count)
        return names

    def _add_missing_names(self) -> None:
        """Complete the index, in which workers of an earlier version are missing."""
        redis = self._session.redis
        with redis.pipeline(transaction=False) as pipe:
            listed, live = pipe.zcard(keys.SLOT_NAMES).zcard(keys.SLOTS).execute()
        if listed >= live:
            return
        # Only while such workers start; their names then stay in the index.
        names = redis.zrange(keys.SLOTS, 0, -1)
        for first in range(0, len(names), _NAMES_AT_ONCE):
            redis.zadd(keys.SLOT_NAMES, dict.fromkeys(names[first : first + _NAMES_AT_ONCE], 0))

    def _read_items(self, slots: Sequence[SlotView]) -> list[RunningItem | None]:
        busy = [slot for slot in slots if slot.item]
        with self._session.redis.pipeline(transaction=False) as pipe:
            for slot in busy:
                pipe.hmget(keys.item(slot.item), _ITEM_FIELDS)
                pipe.hget(keys.job(split_item_id(slot.item)[0]), "adapters")
            replies = pipe.execute()
        found = {
            slot.name: _running_item(slot, dict(zip(_ITEM_FIELDS, item, strict=True)), adapters)
            for slot, item, adapters in zip(busy, replies[::2], replies[1::2], strict=True)
        }
        return [found.get(slot.name) for slot in slots]


def _running_item(slot: SlotView, item: Mapping[str, Any], adapters: str | None) -> RunningItem | None:
    # The item may have ended, or be another slot's, since the slot's last report.
    if item["state"] != State.RUNNING or item["slot"] != slot.name:
        return None
    job_id, index = split_item_id(slot.item)
    return RunningItem(
        job_id=job_id,
        index=index,
        tenant=item["tenant"] or DEFAULT_TENANT,
        adapters=adapters or OTHER,
        attempt=int(item["attempt"]),
        started_ms=int(item["started_ms"]),
        progress=_progress(item["progress"]),
    )


def _progress(text: str | None) -> Progress | None:
    try:
        return None if text is None else Progress.model_validate_json(text)
    except ValidationError:
        # A worker of another version wrote it.
        return None
