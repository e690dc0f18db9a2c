"""One scenario's run: its fleet, its load, its verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import history
from chaos.checker import Violation, check, collect
from chaos.fleet import Fleet, Plan
from chaos.load import Load
from shared.job import State
from shared.ledger import ItemView
from shared.local.s3_server import S3Server

Figure = str | float | int


@dataclass
class Outcome:
    """What a scenario showed.

    Attributes:
        must_fail: of a control or a mutation: the checker has to find something.
    """

    name: str
    what: str
    must_fail: bool = False
    figures: dict[str, Figure] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def as_expected(self) -> bool:
        return bool(self.violations) == self.must_fail


@dataclass(frozen=True)
class Lab:
    """What all scenarios of one run share."""

    folder: Path
    s3: S3Server
    seed: int

    def rng(self, name: str) -> random.Random:
        """The scenario's own dice, the same for the same seed."""
        return random.Random(f"{self.seed} {name}")


class Trial:
    """A running fleet under load; what is demanded of it is collected, not raised."""

    def __init__(self, fleet: Fleet, load: Load, rng: random.Random, outcome: Outcome) -> None:
        self.fleet = fleet
        self.load = load
        self.rng = rng
        self.ledger = fleet.ledger()
        self.outages = 0
        self._outcome = outcome

    def figure(self, name: str, value: Figure) -> None:
        """Put a number into the report."""
        self._outcome.figures[name] = round(value, 3) if isinstance(value, float) else value

    def demand(self, name: str, holds: bool, detail: object = "") -> None:
        """Count it as a violation when it does not hold."""
        if not holds:
            self._outcome.violations.append(Violation(self._outcome.name, name, str(detail)))

    def at_most(self, name: str, value: float, limit: float) -> None:
        """A figure with a bound."""
        self.figure(f"{name} (<= {limit:g})", value)
        self.demand(name, value <= limit, f"{value:.3f} > {limit:g}")

    def timed(self, condition: Callable[[], Any], limit_s: float, *, what: str) -> float:
        """Seconds until the condition holds; a violation, and not an error, when that is later than the limit."""
        began = time.monotonic()
        try:
            self.fleet.wait(condition, limit_s, what=what)
        except TimeoutError:
            self.demand(what, False, f"not within {limit_s:g} s")
        return time.monotonic() - began

    def finish(self, idle_s: float) -> None:
        """Wait for every job; those of which none ends any more in `idle_s` are for I1."""
        self.load.wait(idle_s)

    def items(self) -> list[ItemView]:
        """Every item as it stands."""
        return [item for job in collect(self.ledger).jobs.values() for item in job.items]

    def item(self, job: str, index: int = 0) -> ItemView:
        view = self.ledger.job(job)
        assert view is not None
        return view.items[index]

    def slot_of(self, job: str, *, timeout_s: float = 20.0) -> str:
        """Wait until the job's first item runs and has taken a step; returns whose it is."""

        def slot() -> str | None:
            item = self.item(job)
            return item.slot if item.state is State.RUNNING and item.progress and item.progress.step else None

        return str(self.fleet.wait(slot, timeout_s, what=f"a step of {job}"))

    def events(self, kind: str, **wanted: Any) -> list[history.Event]:
        """Those of the history so far that match."""
        return [
            event
            for event in history.read(self.fleet.history.path)
            if event["kind"] == kind and all(event.get(name) == value for name, value in wanted.items())
        ]


@contextmanager
def trial(lab: Lab, outcome: Outcome, plan: Plan) -> Iterator[Trial]:
    """Run a fleet; after the block, hold what it did to the invariants."""
    folder = lab.folder / outcome.name.replace(" ", "-").replace("/", "-")
    folder.mkdir()
    rng = lab.rng(outcome.name)
    began = time.monotonic()
    with Fleet(folder, plan, lab.s3, rng) as fleet:
        with Load(fleet, rng) as load:
            running = Trial(fleet, load, rng, outcome)
            try:
                yield running
            except TimeoutError as error:
                running.demand("in time", False, error)
        fleet.quiet()
        events = history.read(fleet.history.path)
        left = collect(running.ledger)
        outcome.violations += check(events, left, fleet.store(), outages=running.outages)
        items = [item for job in left.jobs.values() for item in job.items]
        running.figure("items", len(items))
        for state in State:
            if count := sum(item.state is state for item in items):
                running.figure(state.value, count)
    outcome.wall_s = time.monotonic() - began
