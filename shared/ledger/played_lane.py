"""A lane of the queue while it is played forward, and when its items are claimed."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final, NamedTuple

from shared.ledger.queue_snapshot import Chunk, LaneSnapshot

#: A lane with fewer items counts as empty: weights leave fractions of items.
LEAST_ITEMS: Final = 1e-6
# Accept order and time of items that have not come yet.
_NEWEST: Final = 2**53


class _Claims(NamedTuple):
    """Claims one after the other; times in ms after the snapshot."""

    claimed_before: float
    position: float
    start_ms: float
    spacing_ms: float


class ClaimCurve:
    """When the items of a lane, a share or a pool are claimed, by the number of its items that are claimed before."""

    def __init__(self) -> None:
        self.claimed = 0.0
        self._claims: list[_Claims] = []

    def add(self, items: float, *, position: float, start_ms: float, spacing_ms: float) -> None:
        """Add claims.

        Args:
            position: number of claims from the pool before the first of them.
            spacing_ms: time between the starts of two of them.
        """
        self._claims.append(_Claims(self.claimed, position, start_ms, spacing_ms))
        self.claimed += items

    def at(self, rank: float) -> tuple[float, float]:
        """Return the position of an item and its start in ms after the snapshot; (0, 0) if no claim was added."""
        if not self._claims:
            return 0.0, 0.0
        claims = self._claims[max(0, bisect_right(self._claims, rank, key=lambda one: one.claimed_before) - 1)]
        after = rank - claims.claimed_before
        return claims.position + after, claims.start_ms + after * claims.spacing_ms


class Lane:
    """The items of one lane that are not claimed yet.

    Args:
        weight: number of lanes for which it stands.
        refill: items that come while one is claimed; they are the last, and have the shape of the newest.
    """

    def __init__(self, snapshot: LaneSnapshot, weight: float, refill: float) -> None:
        self.adapters = snapshot.adapters
        self.is_warm = snapshot.is_warm
        self.curve = ClaimCurve()
        self._weight = weight
        self._chunks = deque(snapshot.chunks)
        if refill:
            items = sum(chunk.items for chunk in snapshot.chunks)
            last = snapshot.chunks[-1]
            self._chunks.append(Chunk(_NEWEST, _NEWEST, items * refill, last.shape, is_expected=True))
        self._left = snapshot.chunks[0].items * weight

    @property
    def is_empty(self) -> bool:
        return not self._chunks

    @property
    def head(self) -> Chunk:
        """The oldest items, which are alike."""
        return self._chunks[0]

    def claim(self, most: float) -> float:
        """Claim up to `most` of the oldest items that are alike, at least one of each lane; return their number."""
        items = min(self._left, max(most, self._weight))
        self._left -= items
        if self._left < LEAST_ITEMS:
            self._chunks.popleft()
            self._left = self._chunks[0].items * self._weight if self._chunks else 0.0
        return items
