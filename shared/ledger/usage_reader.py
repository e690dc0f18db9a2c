"""Read what attempts used from Redis, with plain reads that change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

from shared.errors import InvalidRequest
from shared.ledger import keys
from shared.ledger.bulk_reads import in_parts, read_each
from shared.ledger.session import Session
from shared.ledger.usage_rows import DAY_S, Usage, UsageRow

_EPOCH: Final = date(1970, 1, 1)
# Rows that one call reads: 0.3 s and 60 MB of the reader.
_MOST_ROWS: Final = 100_000
# Days whose tenants one round trip reads: where a proxy names each user as a tenant, a day has thousands.
_DAYS_AT_ONCE: Final = 20

_FEWER: Final = "ask for fewer days, or for one tenant"


class UsageReader:
    """The usage of every tenant; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def today(self) -> date:
        """Return the day by which usage is counted now: Redis' clock, UTC."""
        return _EPOCH + timedelta(days=self._session.now_ms() // (1000 * DAY_S))

    def rows(self, first: date, last: date, *, tenant: str | None = None) -> Iterator[UsageRow]:
        """Yield the rows from the first to the last day, both included.

        Args:
            tenant: whose; None for those of all.

        Raises:
            InvalidRequest: there are too many rows.
        """
        days = range((first - _EPOCH).days, (last - _EPOCH).days + 1)
        owners = [(day, tenant) for day in days] if tenant is not None else self._find_tenants(days)
        counts = self._ask("hlen", [keys.usage(*owner) for owner in owners])
        _check_rows(sum(counts), "ask for fewer days" if tenant is not None else _FEWER)
        stored = [owner for owner, count in zip(owners, counts, strict=True) if count]
        for part in in_parts(stored):
            hashes = self._ask("hgetall", [keys.usage(*owner) for owner in part])
            for (day, name), rows in zip(part, hashes, strict=True):
                for row, text in rows.items():
                    yield UsageRow.parse(_EPOCH + timedelta(days=day), name, row, text)

    def totals(self) -> Mapping[tuple[str, str], Usage]:
        """Return what was used by tenant and model since the first attempt; totals do not expire as rows do."""
        with self._session.commands():
            stored = self._session.redis.hgetall(keys.USAGE_TOTALS)
        totals = {}
        for name, text in stored.items():
            tenant, _, model = name.partition("|")
            totals[tenant, model] = Usage.parse(text)
        return totals

    def _find_tenants(self, days: Sequence[int]) -> list[tuple[int, str]]:
        owners: list[tuple[int, str]] = []
        for part in in_parts(days, _DAYS_AT_ONCE):
            found = self._ask("smembers", [keys.usage_tenants(day) for day in part])
            owners += [(day, tenant) for day, tenants in zip(part, found, strict=True) for tenant in sorted(tenants)]
            # Each of them has a row. Before the next days are read: a year of ten thousand tenants takes 400 MB.
            _check_rows(len(owners), _FEWER)
        return owners

    def _ask(self, command: str, names: Sequence[str]) -> list[Any]:
        """Return the reply to a read of each key."""
        with self._session.commands():
            return read_each(self._session.redis, ((command, name) for name in names))


def _check_rows(count: int, remedy: str) -> None:
    if count > _MOST_ROWS:
        raise InvalidRequest(
            f"at least {count:,} rows are stored for these days, and a call reads {_MOST_ROWS:,}; {remedy}"
        )
