"""One connection to Redis, one clock and one way to run a script: what `Ledger` shares with its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from shared.ledger import lua
from shared.ledger.connection import Breaker, Client


class Session:
    """A Redis client with the ledger's scripts registered.

    Everything that goes through a session raises `LedgerUnavailable` when Redis does not answer in time. The write may
    then have happened or not, and repeating it is safe: scripts recognise what they already did, and a claim whose
    reply was lost expires by itself.

    Args:
        client: with `decode_responses=True`.
        clock_ms: replaces Redis' clock; for tests.
        pause_s: after Redis was away, calls fail at once for this long; 0 lets each find out for itself.
    """

    def __init__(self, client: Client, *, clock_ms: Callable[[], int] | None = None, pause_s: float = 0.0) -> None:
        self.redis = client
        self._clock_ms = clock_ms
        self._breaker = Breaker(pause_s=pause_s)
        # This sends nothing yet: redis-py loads a script when Redis does not know it, also after Redis restarted.
        self._scripts = {name: client.register_script(text) for name, text in lua.scripts().items()}

    def now_ms(self) -> int:
        """Return the ledger's time: that of Redis, so that clocks of hosts do not matter."""
        if self._clock_ms is not None:
            return self._clock_ms()
        with self.commands():
            seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def clock_override_ms(self) -> int | None:
        """Return the time that a test set; None where Redis' own clock is used."""
        return None if self._clock_ms is None else self._clock_ms()

    def commands(self) -> AbstractContextManager[None]:
        """Run plain Redis commands in this context; raises `LedgerUnavailable` as `Breaker.calls` does."""
        return self._breaker.calls()

    def run(self, script: str, **arguments: Any) -> Any:
        """Run one script of `scripts/`, which is one atomic step; it receives its arguments by name.

        An argument that is None is left out, since cjson decodes null to a value that Lua takes for true.
        """
        arguments["now_ms"] = self.clock_override_ms()
        present = {name: value for name, value in arguments.items() if value is not None}
        # Not escaped: text that has no encoding (a lone surrogate) fails here, and not inside the script.
        text = json.dumps(present, ensure_ascii=False, allow_nan=False)
        with self.commands():
            return self._scripts[script](args=[text])


def ms(seconds: float) -> int:
    """Convert seconds to the whole milliseconds that scores and scripts count in."""
    return int(seconds * 1000)
