"""The workers as the ledger sees them: who is alive, what each has loaded, and whose device keeps failing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from shared.ledger import keys, views
from shared.ledger.session import Session, ms


class SlotBook(Session):
    """Slots and base models in one Redis."""

    def beat(self, slot: str, report: Mapping[str, str]) -> None:
        """Tell that a slot is alive and what it is doing."""
        now = self.now_ms()
        with self._calls(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.slot(slot), mapping=dict(report))
            pipe.pexpire(keys.slot(slot), views.SLOT_TTL_MS)
            pipe.zadd(keys.SLOTS, {slot: now})
            pipe.zremrangebyscore(keys.SLOTS, "-inf", now - views.SLOT_TTL_MS)
            pipe.execute()

    def leave(self, slot: str) -> None:
        """A slot stops in good order."""
        with self._calls():
            self.redis.delete(keys.slot(slot))
            self.redis.zrem(keys.SLOTS, slot)

    def publish_base(self, model: str, *, revision: str, layers: Mapping[str, tuple[int, int]]) -> None:
        """Let the API check adapter headers against the base model that a worker has loaded."""
        with self._calls():
            self.redis.set(keys.base(model), json.dumps({"revision": revision, "layers": layers}))

    def base(self, model: str, slots: Iterable[views.SlotView]) -> views.BaseModelInfo | None:
        """The base model that these slots have loaded; None if none of them has, or not all the same."""
        with self._calls():
            raw = self.redis.get(keys.base(model))
        data = None if raw is None else json.loads(str(raw))
        if data is None or {slot.revision for slot in slots if slot.model == model} != {data["revision"]}:
            return None
        return views.BaseModelInfo(
            revision=data["revision"], layers={name: (rows, cols) for name, (rows, cols) in data["layers"].items()}
        )

    def slots(self) -> list[views.SlotView]:
        """The slots whose heartbeat is fresh."""
        since = self.now_ms() - views.SLOT_TTL_MS
        with self._calls():
            return views.read_slots(self.redis, since_ms=since)

    def note_fault(self, slot: str, item_id: str, *, window_s: float) -> None:
        """Remember that a slot's device failed on an item; forgotten after `window_s`."""
        now = self.now_ms()
        with self._calls(), self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.faults(slot), {item_id: now})
            pipe.pexpire(keys.faults(slot), ms(window_s))
            pipe.execute()

    def faults(self, slot: str, *, window_s: float) -> int:
        """On how many different items the slot's device failed in the last `window_s` seconds."""
        since = self.now_ms() - ms(window_s)
        with self._calls():
            return int(self.redis.zcount(keys.faults(slot), since, "+inf"))
