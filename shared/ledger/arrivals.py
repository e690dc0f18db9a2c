"""How many jobs come: seen by one process from the accept orders that it reads, without a write."""

from __future__ import annotations

from collections import deque

# Rates of a shorter time say little, and those of a longer one are out of date. The lower of two counts, so that a
# single burst is soon forgotten.
_SHORTEST_MS, _RECENT_MS, _LONGEST_MS = 60_000, 180_000, 600_000


class ArrivalRate:
    """The items that were accepted in the last minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def note(self, now_ms: int, sequence: int) -> None:
        """Note the accept order of the newest item."""
        if self._seen and (now_ms < self._seen[-1][0] or sequence < self._seen[-1][1]):
            # The clock went back, or Redis holds older data.
            self._seen.clear()
        self._seen.append((now_ms, sequence))
        while len(self._seen) > 2 and self._seen[1][0] <= now_ms - _LONGEST_MS:
            self._seen.popleft()

    @property
    def per_ms(self) -> float:
        """Items accepted in a ms, on average; 0 while it is unknown."""
        return min(self._since(_RECENT_MS), self._since(_LONGEST_MS))

    def _since(self, passed_ms: int) -> float:
        if not self._seen:
            return 0.0
        last_ms, last = self._seen[-1]
        first_ms, first = next(seen for seen in self._seen if seen[0] >= last_ms - passed_ms)
        return (last - first) / (last_ms - first_ms) if last_ms - first_ms >= _SHORTEST_MS else 0.0
