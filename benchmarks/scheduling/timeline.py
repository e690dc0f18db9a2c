"""Virtual time: hours of a fleet pass in the seconds that its calls to Redis take."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from shared.ledger.session import to_ms

_START_MS = 1_700_000_000_000

Action = Callable[[], None]


class Timeline:
    """Performs actions in the order of their times; nothing waits."""

    def __init__(self) -> None:
        self._now_ms = _START_MS
        # Actions of the same time are performed in the order in which they were planned.
        self._order = count()
        self._planned: list[tuple[int, int, Action]] = []

    def now_ms(self) -> int:
        """Return the virtual time in ms since the epoch."""
        return self._now_ms

    def now_s(self) -> float:
        """Return the virtual seconds since the start."""
        return (self._now_ms - _START_MS) / 1000

    def after(self, delay_s: float, action: Action) -> None:
        """Plan an action for `delay_s` from now."""
        heapq.heappush(self._planned, (self._now_ms + to_ms(delay_s), next(self._order), action))

    def run(self, *, until: Callable[[], bool]) -> None:
        """Perform what is planned, and what that plans in turn, until `until` is true or nothing is left."""
        while self._planned and not until():
            self._now_ms, _, action = heapq.heappop(self._planned)
            action()
