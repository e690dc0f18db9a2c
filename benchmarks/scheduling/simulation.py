"""A fleet of simulated slots on one ledger, with jobs that arrive while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from benchmarks.scheduling.history import History
from benchmarks.scheduling.service_times import ServiceTimes
from benchmarks.scheduling.slot import SimulatedSlot
from benchmarks.scheduling.timeline import Timeline
from shared.errors import ServerFailed
from shared.ledger import Ledger
from shared.ledger.acceptance import Submission
from shared.ledger.connection import Client
from shared.settings import QueueSettings

# Between an accept and the claim of an idle slot that it wakes.
_WAKE_S = 0.005
_JOBS_PER_CALL = 50


@dataclass(frozen=True)
class Arrival:
    """Jobs that callers send at one time, in s since the start."""

    at_s: float
    jobs: Sequence[Submission]


class Observer(Protocol):
    """Watches a run; see `benchmarks.scheduling.forecasts`."""

    def attach(self, simulation: Simulation) -> None:
        """Plan on the simulation's timeline what to look at; called once, before the run."""


class Simulation:
    """The slots of one fleet and the queue that they work on.

    Attributes:
        ledger: on the virtual clock of `timeline`.
        history: what happened to each item so far.
    """

    def __init__(self, client: Client, settings: QueueSettings, *, observers: Sequence[Observer] = ()) -> None:
        self.timeline = Timeline()
        self.ledger = Ledger(client, settings, clock_ms=self.timeline.now_ms)
        self.history = History()
        self._settings = settings
        self._slots: dict[str, SimulatedSlot] = {}
        self._idle: deque[SimulatedSlot] = deque()
        self._to_arrive = 0
        self._is_started = False
        for observer in observers:
            observer.attach(self)

    def add_slot(self, name: str, times: ServiceTimes, *, at_s: float = 0.0, first_share: float = 1.0) -> None:
        """Plan the start of a slot, `at_s` from now.

        Args:
            first_share: see `SimulatedSlot`.
        """
        slot = SimulatedSlot(
            name,
            ledger=self.ledger,
            timeline=self.timeline,
            times=times,
            history=self.history,
            on_idle=self._idle.append,
            first_share=first_share,
        )
        self._slots[name] = slot
        self.timeline.after(at_s, slot.start)

    def add_slots(self, count: int, times: ServiceTimes) -> None:
        """Plan the starts of `count` slots now."""
        for number in range(count):
            self.add_slot(f"host-{number}/cuda:0", times)

    def plan(self, arrivals: Sequence[Arrival]) -> None:
        """Plan the accepts of jobs."""
        for arrival in arrivals:
            self._to_arrive += 1
            self.timeline.after(arrival.at_s, partial(self._arrive, arrival.jobs))

    def kill(self, name: str) -> None:
        """End a slot as a power cut does."""
        self._slots[name].kill()

    def drain(self, name: str) -> None:
        """End a slot as SIGTERM does."""
        self._slots[name].drain()

    def drain_all(self) -> None:
        """End all slots, and run until they have ended."""
        for slot in self._slots.values():
            slot.drain()
        self.timeline.run(until=lambda: all(slot.is_gone for slot in self._slots.values()))
        self._slots.clear()
        self._idle.clear()

    def run(self) -> History:
        """Run until each item of each planned job has ended."""
        self._start()
        self.timeline.run(until=lambda: not self._to_arrive and not self.history.unfinished)
        if self.history.unfinished or self._to_arrive:
            raise ServerFailed(f"{self.history.unfinished} items of the simulation never ended; no slot was left")
        return self.history

    def run_for(self, seconds: float) -> None:
        """Run for some virtual time."""
        self._start()
        ends: list[float] = []
        self.timeline.after(seconds, lambda: ends.append(self.timeline.now_s()))
        self.timeline.run(until=lambda: bool(ends))

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._reap_again()

    def _arrive(self, jobs: Sequence[Submission]) -> None:
        self._to_arrive -= 1
        self.accept(jobs)

    def accept(self, jobs: Sequence[Submission]) -> None:
        """Accept jobs now, and wake idle slots for their items."""
        for first in range(0, len(jobs), _JOBS_PER_CALL):
            self.ledger.accept_all(jobs[first : first + _JOBS_PER_CALL])
        for job in jobs:
            self.history.accept(job, self.timeline.now_s())
            self._wake(len(job.items))

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._idle))):
            self.timeline.after(_WAKE_S, self._idle.popleft().claim)

    def _reap_again(self) -> None:
        self._wake(sum(self.ledger.reap().requeued.values()))
        self.timeline.after(self._settings.reap_period_s, self._reap_again)
