"""What listeners watch: a state in Redis that changes, and the events that describe the changes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi.sse import ServerSentEvent

from shared.ledger import Ledger
from shared.ledger.live_jobs import JobMoves
from shared.ledger.queue_reader import QueueSums

#: Seconds after which estimates are made again; they change all the time.
ESTIMATES_S: Final = 3.0


@dataclass(frozen=True)
class Reading:
    """What one pass of the poller read for all feeds.

    Attributes:
        now_s: time of the pass, by the monotonic clock.
        running: indices of running items by job, of all tenants.
        owners: tenants of those jobs, if a feed needs them.
        slot_states: number of live slots by state; empty unless a feed needs it.
        sequence: accept order of the newest item; 0 unless a feed needs it.
        sums: items of the tenants whose jobs are watched.
        moves: what moved of each job that a feed asked for; None for a job that does not exist.
    """

    now_s: float
    running: Mapping[str, Collection[int]]
    owners: Mapping[str, str] = field(default_factory=dict)
    slot_states: Mapping[str, int] = field(default_factory=dict)
    sequence: int = 0
    sums: Mapping[str | None, QueueSums] = field(default_factory=dict)
    moves: Mapping[str, JobMoves | None] = field(default_factory=dict)


class Feed(ABC):
    """A state and its changes. The poller's thread updates it; between two passes, the event loop reads it.

    Attributes:
        is_loaded: whether there is a state yet.
        is_over: whether it changes no more.
        is_gone: whether what it showed does not exist any more.
    """

    def __init__(self) -> None:
        self.is_loaded = False
        self.is_over = False
        self.is_gone = False

    @abstractmethod
    def choose(self, ledger: Ledger, reading: Reading) -> Mapping[str, Collection[int]]:
        """Return the jobs, and the indices of items of each, of which the next update needs the moves."""

    @abstractmethod
    def update(self, ledger: Ledger, reading: Reading) -> ServerSentEvent | None:
        """Bring the state up to date and return the change; None if nothing changed, or if it was only loaded."""

    @abstractmethod
    def snapshot(self) -> ServerSentEvent:
        """Return the whole state as an event."""

    @abstractmethod
    def resumption(self) -> ServerSentEvent | None:
        """Return what a caller may not know who has the state's id: the estimates, which are no part of it."""

    @abstractmethod
    def running_items(self) -> Collection[str]:
        """Return the ids of the running items whose previews belong to the feed."""


def state_id(state: Any) -> str:
    """Return the id of a state: the same in every process."""
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=12).hexdigest()


def event(name: str, text: str, *, state: str | None = None) -> ServerSentEvent:
    """Make an event from its JSON; `state` is the id of the state that it leads to."""
    return ServerSentEvent(event=name, raw_data=text, id=state)
