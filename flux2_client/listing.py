"""Read a listing page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from flux2_client.models import LineT, Page
from flux2_client.steps import Steps


class Listing(Generic[LineT]):
    """The pages of a listing, which are fetched one after the other.

    Args:
        fetch: fetches the page at a cursor; None is the first page.
    """

    def __init__(self, fetch: Callable[[str | None], Steps[Page[LineT]]]) -> None:
        self._fetch = fetch
        self._cursor: str | None = None
        #: Whether the last page has been read.
        self.is_complete = False

    def next_page(self) -> Steps[tuple[LineT, ...]]:
        """Fetch the next page; return its lines, which may be none although more follow."""
        page = yield from self._fetch(self._cursor)
        self._cursor = page.next_cursor
        self.is_complete = not page.has_more or page.next_cursor is None
        return page.data
