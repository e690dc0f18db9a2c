"""What every part of the ledger stands on: one client, one clock, one way to run a script."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib import resources
from typing import Any, Self

from shared.ledger import durability
from shared.ledger.connection import Breaker, Client, connect
from shared.ledger.durability import Shortcoming
from shared.settings import QueueSettings


class Session:
    """A Redis with the ledger's scripts in it.

    Every method of the classes made from it raises `LedgerUnavailable` when Redis does not answer in time; the write
    may then have happened or not, and repeating it is safe: scripts recognise what they already did (an unanswered
    claim expires by itself).

    Args:
        client: with `decode_responses=True`.
        clock_ms: replaces Redis' clock; for tests.
        pause_s: after Redis was away, calls fail at once for this long; 0 lets each find out for itself.
    """

    def __init__(
        self,
        client: Client,
        settings: QueueSettings,
        *,
        clock_ms: Callable[[], int] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self.redis = client
        self._settings = settings
        self._clock_ms = clock_ms
        self._breaker = Breaker(pause_s=pause_s)
        self._scripts = {name: client.register_script(text) for name, text in scripts().items()}

    @classmethod
    def connect(cls, url: str, settings: QueueSettings, *, timeout_s: float, pause_s: float = 0.0) -> Self:
        """Open the ledger of the Redis at `url`; see `shared.ledger.connection.connect`."""
        return cls(connect(url, timeout_s=timeout_s), settings, pause_s=pause_s)

    def ping(self) -> None:
        """Raise `LedgerUnavailable` unless Redis answers."""
        with self._calls():
            self.redis.ping()

    def shortcomings(self) -> list[Shortcoming]:
        """Why this Redis may lose what it acknowledged; nothing when it is as it should be."""
        with self._calls():
            return durability.shortcomings(self.redis)

    def now_ms(self) -> int:
        """The ledger's time."""
        if self._clock_ms is not None:
            return self._clock_ms()
        with self._calls():
            seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _calls(self) -> AbstractContextManager[None]:
        return self._breaker.calls()

    def _run(self, script: str, *args: str | int) -> Any:
        now = "" if self._clock_ms is None else str(self._clock_ms())
        with self._calls():
            return self._scripts[script](args=[now, *args])


@cache
def scripts() -> dict[str, str]:
    """Each script's whole text by its name: the common prelude, for some the choice of an item, then its file."""
    folder = resources.files("shared.ledger") / "scripts"
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in files}
    prelude, choose = texts.pop("prelude"), texts.pop("choose")
    return {
        name: prelude + (choose if name in ("claim_next", "peek_next") else "") + text for name, text in texts.items()
    }


def ms(seconds: float) -> int:
    """Redis' scores and our scripts count in whole milliseconds."""
    return int(seconds * 1000)
