"""One open stream of events, from the poller to the connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from fastapi.sse import ServerSentEvent

# Events that wait for a slow connection. One that is further behind gets a snapshot instead.
_MOST_WAITING: Final = 16


class Listener:
    """The events of one connection. Only the event loop uses it.

    Attributes:
        wants_previews: whether the caller asked for pictures.
        needs_snapshot: whether it has no state yet, or missed events because its connection was slow.
        until_s: time at which the stream ends, by the monotonic clock.
    """

    def __init__(self, *, last_id: str, wants_previews: bool, until_s: float) -> None:
        self.wants_previews = wants_previews
        self.needs_snapshot = True
        # Of the state that the caller has; empty for none.
        self._last_id = last_id
        self.until_s = until_s
        self._waiting: deque[ServerSentEvent] = deque()
        # The last picture of each item.
        self._pictures: dict[str, ServerSentEvent] = {}
        self._is_closed = False
        self._moved = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def begin(self, snapshot: ServerSentEvent, resumption: ServerSentEvent | None) -> None:
        """Bring the caller to the present state.

        Args:
            resumption: sent instead of the snapshot to a caller who has this state already; None if nothing is missing.
        """
        has_state = self._last_id == snapshot.id
        # A later snapshot is for a caller who missed events.
        self._last_id, self.needs_snapshot = "", False
        if not has_state:
            self._put(snapshot)
        elif resumption is not None:
            self._put(resumption)

    def send(self, event: ServerSentEvent) -> None:
        """Send a change to a caller who has the state before it."""
        if self.needs_snapshot:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.clear()
            self.needs_snapshot = True
            return
        self._put(event)

    def send_preview(self, item_id: str, picture: ServerSentEvent) -> None:
        """Send a picture of an item instead of an earlier one that still waits."""
        if self.wants_previews and not self.needs_snapshot:
            self._pictures[item_id] = picture
            self._moved.set()

    def end(self, event: ServerSentEvent) -> None:
        """Send the last event and end the stream."""
        self._put(event)
        self.close()

    def close(self) -> None:
        """End the stream after the events that wait."""
        self._is_closed = True
        self._moved.set()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield the events as they come, until the stream is closed."""
        while True:
            while self._waiting or self._pictures:
                # Changes first: a picture belongs to an image that the caller knows.
                yield self._waiting.popleft() if self._waiting else self._pictures.pop(next(iter(self._pictures)))
            if self._is_closed:
                return
            self._moved.clear()
            await self._moved.wait()

    def _put(self, event: ServerSentEvent) -> None:
        self._waiting.append(event)
        self._moved.set()
