"""Serve all open streams of events of this process from one poller."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from anyio import CapacityLimiter, to_thread

from api.events.feed import Feed, event
from api.events.feed_reader import FeedReader, News
from api.events.listener import Listener
from api.events.previews import PreviewBoard
from shared.errors import LedgerUnavailable, TooManyListeners
from shared.ledger import Ledger

logger = logging.getLogger("flux2.api.events")

#: Streams that one process serves, and those of one tenant.
LISTENERS: Final = 500
LISTENERS_OF_TENANT: Final = 250

_PASS_EVERY_S: Final = 0.5
# Reading takes a quarter of one core at most, unless changes would come much too late.
_PAUSE_FOR_ITS_COST: Final = 3.0
_LONGEST_PAUSE_S: Final = 5.0
# How soon the end of the process is noticed.
_LOOK_S: Final = 0.2
# A stream ends after this time, so that the caller's key is checked again; the caller connects again and goes on.
_LONGEST_S: Final = 600.0


class EventStreams:
    """The open streams and the feeds that they show. Only the event loop uses it.

    Attributes:
        is_stopping: whether the process is about to end; streams then end too.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._board = PreviewBoard(ledger.previews)
        self._reader = FeedReader(ledger, self._board)
        self._feeds: dict[Hashable, Feed] = {}
        self._listeners: dict[Hashable, set[Listener]] = {}
        self._taken: Counter[str] = Counter()
        self._poller: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        # Reads must not wait for one of the threads that answer other calls.
        self._limiter = CapacityLimiter(1)
        self.is_stopping: Callable[[], bool] = lambda: False

    @contextmanager
    def open(
        self, name: Hashable, make_feed: Callable[[], Feed], *, tenant: str, last_id: str, previews: bool
    ) -> Iterator[Listener]:
        """Open a stream for the time of the context.

        Args:
            name: identity of the feed, which its listeners share.
            tenant: of the caller.
            last_id: id of the last event that the caller has; empty for none.

        Raises:
            TooManyListeners: this process, or the tenant, has as many streams as it may.
        """
        if self._taken.total() >= LISTENERS or self._taken[tenant] >= LISTENERS_OF_TENANT:
            raise TooManyListeners
        # At different times, so that not all callers connect again at once.
        until_s = time.monotonic() + _LONGEST_S * random.uniform(0.8, 1.0)
        listener = Listener(last_id=last_id, wants_previews=previews, until_s=until_s)
        self._taken[tenant] += 1
        if name not in self._feeds:
            self._feeds[name] = make_feed()
        self._listeners.setdefault(name, set()).add(listener)
        self._joined.set()
        self._start()
        try:
            yield listener
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
            self._listeners[name].discard(listener)
            if not self._listeners[name]:
                del self._listeners[name], self._feeds[name]

    def _start(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        if self._closer is None or self._closer.done():
            self._closer = asyncio.create_task(self._close_in_time())

    async def _poll(self) -> None:
        due_s = 0.0
        while self._feeds:
            began_s = time.monotonic()
            is_new = self._joined.is_set() and any(not feed.is_loaded for feed in self._present().values())
            self._joined.clear()
            news = News()
            if began_s >= due_s or is_new:
                is_read = await self._read(news)
                took_s = time.monotonic() - began_s
                # Waiting in vain for Redis costs nothing.
                pause_s = min(_PAUSE_FOR_ITS_COST * took_s, _LONGEST_PAUSE_S) if is_read else 0.0
                due_s = began_s + took_s + max(_PASS_EVERY_S - took_s, pause_s)
                self._send(news)
                # Callers who come one after the other must not cause passes without a pause.
                await asyncio.sleep(min(took_s, _PASS_EVERY_S))
            else:
                self._send(news)
            await self._wait(until_s=due_s)

    async def _wait(self, *, until_s: float) -> None:
        """Wait until a time, or until somebody joins."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._joined.wait(), max(0.0, until_s - time.monotonic()))

    def _present(self) -> dict[Hashable, Feed]:
        """Return the feeds that may still change."""
        return {name: feed for name, feed in self._feeds.items() if not feed.is_over and not feed.is_gone}

    async def _read(self, news: News) -> bool:
        """Run one pass in a thread, and return whether Redis answered; the listeners stay whatever happens."""
        feeds = self._present()
        pictured = [feed for name, feed in feeds.items() if any(each.wants_previews for each in self._listeners[name])]
        update = partial(self._reader.update, list(feeds.values()), pictured=pictured, news=news)
        try:
            await to_thread.run_sync(update, limiter=self._limiter)
        except LedgerUnavailable:
            # Redis may be back at the next pass.
            return False
        except Exception:
            # A defect must not end the passes: every stream would stand still.
            logger.exception("events cannot be read; the next pass tries again")
        return True

    def _send(self, news: News) -> None:
        """Send what one pass found, and bring listeners up to date that have no state yet."""
        for name, feed in self._feeds.items():
            listeners = [listener for listener in self._listeners[name] if not listener.is_closed]
            items = feed.running_items()
            pictures = self._board.of([item for item in items if item in news.pictures])
            for listener in listeners:
                if feed in news.changes:
                    listener.send(news.changes[feed])
                for item, picture in pictures.items():
                    listener.send_preview(item, picture)
            new = [listener for listener in listeners if listener.needs_snapshot]
            if feed.is_loaded and new:
                self._begin(feed, new)
            if feed.is_gone or feed.is_over:
                _end(feed, listeners)

    def _begin(self, feed: Feed, listeners: list[Listener]) -> None:
        snapshot, resumption = feed.snapshot(), feed.resumption()
        pictures = self._board.of(feed.running_items())
        for listener in listeners:
            listener.begin(snapshot, resumption)
            for item, picture in pictures.items():
                listener.send_preview(item, picture)

    async def _close_in_time(self) -> None:
        """Close streams that are open for long, and all of them when the process is about to end."""
        while self._listeners:
            now_s, is_stopping = time.monotonic(), self.is_stopping()
            for listener in [each for listeners in self._listeners.values() for each in listeners]:
                if is_stopping or now_s >= listener.until_s:
                    listener.close()
            await asyncio.sleep(_LOOK_S)


def _end(feed: Feed, listeners: list[Listener]) -> None:
    for listener in listeners:
        if feed.is_gone:
            # The next call of the caller is answered that there is no such job.
            listener.close()
        else:
            listener.end(event("end", "{}", state=feed.snapshot().id))
