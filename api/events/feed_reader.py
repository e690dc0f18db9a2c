"""Read Redis for all feeds of this process, in few calls."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fastapi.sse import ServerSentEvent

from api.events.feed import Feed, Reading
from api.events.jobs_feed import JobsFeed
from api.events.previews import PreviewBoard
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger

logger = logging.getLogger("flux2.api.events")


@dataclass
class News:
    """What one pass found: changes of feeds, and items with new pictures."""

    changes: dict[Feed, ServerSentEvent] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)


class FeedReader:
    """Updates feeds. One thread at a time uses it."""

    def __init__(self, ledger: Ledger, board: PreviewBoard) -> None:
        self._ledger = ledger
        self._board = board
        # Tenants of the jobs that have running items.
        self._owners: dict[str, str] = {}

    def update(self, feeds: Sequence[Feed], *, pictured: Collection[Feed], news: News) -> None:
        """Bring feeds up to date.

        Args:
            pictured: those whose previews somebody watches.
            news: gets what is found, also before an error.

        Raises:
            LedgerUnavailable: Redis did not answer; the next pass finds what is missing.
        """
        reading = self._read_fleet(feeds)
        wanted: dict[str, set[int]] = {}
        chosen = [feed for feed in feeds if _guarded(partial(self._choose, feed, reading, wanted))]
        reading = replace(reading, moves=self._ledger.live_jobs.read(wanted))
        for feed in chosen:
            _guarded(partial(self._update, feed, reading, news))
        if pictured:
            items = {item for feed in pictured for item in feed.running_items()}
            news.pictures |= self._board.read(items, now_s=reading.now_s)

    def _read_fleet(self, feeds: Sequence[Feed]) -> Reading:
        jobs = self._ledger.live_jobs
        # Before what the feeds read: a job that is accepted in between is found by the next pass.
        sequence, running = jobs.sequence(), jobs.running()
        tenants = {feed.tenant for feed in feeds if isinstance(feed, JobsFeed)}
        if not tenants:
            return Reading(time.monotonic(), running)
        known = {job: owner for job, owner in self._owners.items() if job in running}
        self._owners = known | jobs.owners([job for job in running if job not in known])
        states: Counter[str] = Counter()
        for kind, count in self._ledger.slot_kinds.count().items():
            states[kind.state] += count
        sums = self._ledger.queue.sums(tenants)
        return Reading(time.monotonic(), running, self._owners, states, sequence, sums)

    def _choose(self, feed: Feed, reading: Reading, wanted: dict[str, set[int]]) -> None:
        for job_id, indices in feed.choose(self._ledger, reading).items():
            wanted.setdefault(job_id, set()).update(indices)

    def _update(self, feed: Feed, reading: Reading, news: News) -> None:
        change = feed.update(self._ledger, reading)
        if change is not None:
            news.changes[feed] = change


def _guarded(step: Callable[[], None]) -> bool:
    """Run a step of one feed; return False if it has a defect, which must not end the others."""
    try:
        step()
    except LedgerUnavailable:
        raise
    except Exception:
        logger.exception("a stream of events cannot be read; the next pass tries again")
        return False
    return True
