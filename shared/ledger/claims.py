"""Claim the next item for a slot, or look at it without claiming it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from shared.errors import StorageOutageReported
from shared.job import ItemError, ItemSpec, is_large
from shared.ledger.claim import Claim
from shared.ledger.claim_numbers import ClaimNumbers
from shared.ledger.outcome import end_item
from shared.ledger.session import Session, to_ms
from shared.ledger.spec_parts import join_texts
from shared.ledger.workers import SLOT_TTL_MS
from shared.settings import QueueSettings


class Claims:
    """The claims that this process makes for its slots."""

    def __init__(self, session: Session, settings: QueueSettings) -> None:
        self._session = session
        self._settings = settings
        self._numbers = ClaimNumbers()

    def peek(self, pools: Sequence[str], *, slot: str, warm: str) -> ItemSpec | None:
        """Return the item that `claim` would claim now; see `Ledger.peek_next`."""
        texts = self._session.run("peek_next", **self.preference(pools, slot, warm))
        try:
            return None if texts is None else ItemSpec.model_validate_json(join_texts(texts))
        except ValidationError:
            # Another version stored the spec; the claim will end the item and state the reason.
            return None

    def claim(self, pools: Sequence[str], *, slot: str, boot: str, warm: str, probed_outage: str) -> Claim | None:
        """Claim the best queued item; see `Ledger.claim_next`."""
        arguments = self.preference(pools, slot, warm)
        arguments |= {
            "boot": boot,
            "lease_ttl_ms": to_ms(self._settings.lease_ttl_s),
            "probed_outage": probed_outage,
        }
        numbers = self._numbers
        # In a loop: a newer version may have stored a thousand specs that this one cannot read.
        while (reply := self._session.run("claim_next", **arguments, number=numbers.current(slot, boot))) is not None:
            if isinstance(reply, int):
                # The item of this number ended, or went back to the queue, before its reply could be repeated.
                numbers.advance(slot, boot, past=reply)
                continue
            if reply[0] == "late":
                # It canceled items whose deadline has passed, and there may be more before one that may start.
                continue
            if reply[0] == "storage_outage":
                raise StorageOutageReported(reply[1])
            claim = self._read(reply)
            numbers.advance(slot, boot)
            if claim is not None:
                return claim
        return None

    def preference(self, pools: Sequence[str], slot: str, warm: str) -> dict[str, Any]:
        """Return the arguments by which `choose.lua` picks an item for a slot."""
        return {
            "pools": [pool for pool in pools if not is_large(pool)],
            "large_pools": [pool for pool in pools if is_large(pool)],
            "slot": slot,
            "warm": warm,
            "wait_bound_ms": to_ms(self._settings.wait_bound_s),
            "slot_ttl_ms": SLOT_TTL_MS,
        }

    def _read(self, reply: Sequence[Any]) -> Claim | None:
        """Read the claim from the script's reply; if its spec cannot be read, end the item and return None."""
        item_id, fence, attempt, texts, queued_ms, now_ms, pool, why, slots, trace = reply
        try:
            spec = ItemSpec.model_validate_json(join_texts(texts))
        except ValidationError as error:
            # Another version stored the spec. Ending the item now saves three leases and states the reason.
            outcome = ItemError(code="unreadable_spec", message=f"this worker cannot read it: {error}", retryable=False)
            end_item(self._session, self._settings, item_id, int(fence), outcome=outcome)
            return None
        return Claim(
            item_id=item_id,
            fence=int(fence),
            attempt=int(attempt),
            spec=spec,
            queued_s=(int(now_ms) - int(queued_ms)) / 1000,
            pool=pool,
            why=why,
            slots=slots,
            trace=trace or "",
        )
