"""A clock of Redis that a scenario can set, without a change to the clock of the host.

The processes of a run add an offset, which is a key in Redis, to the time that they and the ledger's scripts read.
Times to live of keys follow the real clock; tests/integration/test_ledger_stalls.py covers those.
"""

from __future__ import annotations

from unittest import mock

from shared.ledger import lua
from shared.ledger.connection import Client
from shared.ledger.session import Session

HOUR_MS = 3_600_000
# Not one of the product's keys, whose number and names the checker examines.
_OFFSET = "chaos:clock_offset_ms"
_READS_TIME = "now_ms()"
_TIME = "return time[1] * 1000 + math.floor(time[2] / 1000)"


def follow_offset() -> None:
    """Add the offset to the time that this process and its scripts read; call it before the first script runs."""
    texts = lua.scripts()
    for name, text in texts.items():
        if _READS_TIME in text and _TIME not in text:
            raise ValueError(f"{name}.lua has no line {_TIME!r}; adapt chaos/clock.py to prelude.lua")
        texts[name] = text.replace(_TIME, f"{_TIME} + tonumber(redis.call('GET', '{_OFFSET}') or 0)")
    mock.patch.object(Session, "now_ms", lambda session: now_ms(session.redis)).start()


def now_ms(client: Client) -> int:
    """Return the time that the processes of the run see, in ms since the epoch."""
    with client.pipeline(transaction=True) as pipe:
        (seconds, micros), offset_ms = pipe.time().get(_OFFSET).execute()
    return int(seconds) * 1000 + int(micros) // 1000 + int(offset_ms or 0)


def shift(client: Client, by_ms: int) -> None:
    """Move the clock forward, or back."""
    client.incrby(_OFFSET, by_ms)
