"""Number a process's claims, so that Redis recognises the repeat of a claim whose reply was lost."""

from __future__ import annotations


class ClaimNumbers:
    """The number of each slot's next claim.

    A number stays the same until a reply to it brings an item. A reply without an item is not enough: a network may
    deliver a copy of that call late, and the copy may claim an item. The next call with the same number returns it.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def current(self, slot: str, boot: str) -> int:
        """Return the number to send; each process of a slot (`boot`) counts from 1."""
        return self._numbers.get((slot, boot), 1)

    def advance(self, slot: str, boot: str, *, past: int | None = None) -> None:
        """Go on to the next number, because the current one, or `past`, has brought an item."""
        self._numbers[slot, boot] = (self.current(slot, boot) if past is None else past) + 1
