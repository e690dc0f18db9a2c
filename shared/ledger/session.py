"""The connection, clock and scripts that `Ledger` shares with its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from shared.ledger import lua
from shared.ledger.connection import Breaker, Client


class Session:
    """A Redis client with the ledger's scripts registered.

    Every call raises `LedgerUnavailable` when Redis does not answer in time. The write may or may not have happened.
    Repeating it is safe: scripts recognise a repeated call, and a claim whose reply was lost expires by itself.

    Args:
        client: with `decode_responses=True`.
        clock_ms: replaces Redis' clock; for tests.
        pause_s: seconds for which calls fail immediately after Redis did not answer; 0 for no such pause.
    """

    def __init__(self, client: Client, *, clock_ms: Callable[[], int] | None = None, pause_s: float = 0.0) -> None:
        self.redis = client
        self._clock_ms = clock_ms
        self._breaker = Breaker(pause_s=pause_s)
        # This sends nothing yet: redis-py loads a script when Redis does not know it, also after Redis restarted.
        self._scripts = {name: client.register_script(text) for name, text in lua.scripts().items()}

    def now_ms(self) -> int:
        """Return the ledger's time in ms since the epoch."""
        # Redis' clock, so that differences between the hosts' clocks do not matter.
        if self._clock_ms is not None:
            return self._clock_ms()
        with self.commands():
            seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def clock_override_ms(self) -> int | None:
        """Return the time that a test set; None if the ledger uses Redis' clock."""
        return None if self._clock_ms is None else self._clock_ms()

    def commands(self) -> AbstractContextManager[None]:
        """Run plain Redis commands in this context; raises `LedgerUnavailable` as `Breaker.calls` does."""
        return self._breaker.calls()

    def run(self, script: str, **arguments: Any) -> Any:
        """Run one script of `scripts/` as one atomic step; an argument that is None is left out."""
        with self.commands():
            return self.run_in_commands(script, **arguments)

    def run_in_commands(self, script: str, **arguments: Any) -> Any:
        """Run one script as `run` does, for a caller that is inside of `commands` already."""
        # A second `commands` would be refused while the first one tries again after a failure.
        arguments["now_ms"] = self.clock_override_ms()
        # cjson decodes null to a value that Lua treats as true.
        present = {name: value for name, value in arguments.items() if value is not None}
        # Not escaped: text that has no encoding (a lone surrogate) fails here, and not inside the script.
        text = json.dumps(present, ensure_ascii=False, allow_nan=False)
        return self._scripts[script](args=[text])


def to_ms(seconds: float) -> int:
    """Convert seconds to the whole milliseconds that scores and scripts count in."""
    return int(seconds * 1000)
