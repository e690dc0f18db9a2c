"""Draw a fleet again and again until a key ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.live import Live

from flux2_client.fleet import Fleet
from flux2_client.fleet_view import FleetView
from shared.errors import ApiError

_QUIT = frozenset({"q", "Q", "\x1b"})
# Slots that a key scrolls by.
_SCROLLS = {"j": 1, "\x1b[B": 1, "k": -1, "\x1b[A": -1, " ": 10, "\x1b[6~": 10, "b": -10, "\x1b[5~": -10}
_HINT = "q quits, arrows scroll"

#: What changes the screen: a new reading, why it failed, a key, or another size.
Event = Fleet | ApiError | str


@dataclass
class LiveFleet:
    """A screen that shows the last reading of a fleet.

    Args:
        read: reads the fleet.
        interval_s: seconds between two readings.
    """

    screen: Live
    read: Callable[[], Awaitable[Fleet]]
    source: str
    interval_s: float

    def __post_init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def notify(self, key: str) -> None:
        """Handle a key, or `RESIZED`."""
        self._events.put_nowait(key)

    async def run(self) -> None:
        """Draw until a key ends it.

        Raises:
            ApiError: the fleet could not be read the first time, or will not be readable later.
        """
        view = FleetView(await self.read(), self.source, _time(), hint=_HINT)
        reading = asyncio.create_task(self._read_repeatedly())
        try:
            while True:
                self.screen.update(view, refresh=True)
                event = await self._events.get()
                if isinstance(event, str) and event in _QUIT:
                    return
                view = _changed(view, event)
        finally:
            reading.cancel()

    async def _read_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(self.interval_s)
            try:
                self._events.put_nowait(await self.read())
            except ApiError as error:
                self._events.put_nowait(error)


def _changed(view: FleetView, event: Event) -> FleetView:
    match event:
        case Fleet():
            return replace(view, fleet=event, time=_time(), failure="", first=_within(view.first, event))
        case ApiError() if event.retryable:
            return replace(view, failure=str(event))
        case ApiError():
            raise event
        case str() if event in _SCROLLS:
            return replace(view, first=_within(view.first + _SCROLLS[event], view.fleet))
    # `RESIZED`, which draws the same again, or a key without a meaning.
    return view


def _within(first: int, fleet: Fleet) -> int:
    return max(0, min(first, len(fleet.slots) - 1))


def _time() -> str:
    return f"{datetime.now(UTC):%H:%M:%S} UTC"
