"""Count the items that wait and run, by pool and tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.ledger import keys
from shared.ledger.session import Session


@dataclass(frozen=True)
class PoolLoad:
    """The items of one pool that have not ended, by tenant; a tenant without any is absent."""

    queued: Mapping[str, int]
    running: Mapping[str, int]


class Backlog:
    """The items that have not ended; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self, pools: Sequence[str]) -> dict[str, PoolLoad]:
        """Return the load of each pool, in one round trip whose cost grows with the tenants that have items."""
        with self._session.commands(), self._session.redis.pipeline(transaction=False) as pipe:
            for pool in pools:
                pipe.hgetall(keys.shares(pool))
                pipe.hgetall(keys.busy(pool))
            replies = pipe.execute()
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return {
            pool: PoolLoad(_by_tenant(shares), {tenant: int(count) for tenant, count in busy.items()})
            for pool, (shares, busy) in zip(pools, pairs, strict=True)
        }


def _by_tenant(shares: Mapping[str, str]) -> Mapping[str, int]:
    """Add up the shares of each tenant, of which it has one for each priority."""
    counts: Counter[str] = Counter()
    for share, count in shares.items():
        _, _, tenant = share.partition("|")
        counts[tenant] += int(count)
    return counts
