"""Find the claims of a slot whose process ran an earlier version, which kept no list of them."""

from __future__ import annotations

from shared.ledger import keys
from shared.ledger.connection import Client

# Leases read in one step; Redis serves no other client during it.
_LEASES_AT_ONCE = 500


def find_unlisted_claims(client: Client, slot: str) -> list[str]:
    """Return the running items of a slot without a list of claims; empty if it has one, or no recent heartbeat."""
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
