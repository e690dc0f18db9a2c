"""The cursors of listings in accept order: what a page hands out, and what the next call gives back."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

#: The parameter `cursor` of such a listing.
PageCursor = Annotated[str | None, Query(description="`next_cursor` of the previous page.", pattern="^[0-9a-f]{1,13}$")]


def accept_order(cursor: str | None) -> int | None:
    """Return the accept order that a cursor stands for; None for the first page."""
    return None if cursor is None else int(cursor, 16)


def cursor_of(order: int | None) -> str | None:
    """Return the cursor for an accept order; None after the last page."""
    return None if order is None else f"{order:x}"
