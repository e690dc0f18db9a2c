"""Find the claims of a slot whose process was of an earlier version, which listed them nowhere."""

from __future__ import annotations

from shared.ledger import keys
from shared.ledger.connection import Client

# Leases read in one step; Redis serves no other client during it.
_LEASES_AT_ONCE = 500


def find_unlisted_claims(client: Client, slot: str) -> list[str]:
    """Return the running items of a slot that has no list of claims; empty if it has one, or was not alive just now."""
    # A fleet of new slots starts without reading all leases: a slot without a report was away for longer than most
    # leases last.
    if client.exists(keys.claims(slot)) or not client.exists(keys.slot(slot)):
        return []
    found: list[str] = []
    cursor = 0
    while True:
        cursor, leases = client.zscan(keys.LEASES, cursor, count=_LEASES_AT_ONCE)
        with client.pipeline(transaction=False) as pipe:
            for item_id, _ in leases:
                pipe.hget(keys.item(item_id), "slot")
            owners = pipe.execute()
        found += [item_id for (item_id, _), owner in zip(leases, owners, strict=True) if owner == slot]
        if not cursor:
            # A scan may return an item twice.
            return list(dict.fromkeys(found))
