"""One run of a scenario: its fleet, its load and its outcome."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from chaos import history
from chaos.checker import Violation, check, collect
from chaos.fleet import Fleet, Plan
from chaos.load import Load
from chaos.mutate import Mutation
from shared.job import State
from shared.ledger import ItemView, JobView, keys
from shared.local.s3_server import S3Server

Figure = str | float | int


@dataclass
class Outcome:
    """The result of one scenario.

    Attributes:
        must_fail: the scenario is the control or a mutation, so the checker must find a violation.
    """

    name: str
    what: str
    must_fail: bool = False
    figures: dict[str, Figure] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    wall_s: float = 0.0

    @classmethod
    def for_mutation(cls, name: str, what: str, mutation: Mutation) -> Self:
        """Return the outcome of a scenario that runs with a mutation, or with none."""
        if mutation is Mutation.NONE:
            return cls(name, what)
        return cls(f"{name} with {mutation.value}", what, must_fail=True)

    @property
    def as_expected(self) -> bool:
        return bool(self.violations) == self.must_fail


@dataclass(frozen=True)
class Lab:
    """What all scenarios of one run share.

    Attributes:
        patience: factor of every limit of time, for a host that does other things as well.
    """

    folder: Path
    s3: S3Server
    seed: int
    patience: float = 1.0

    def rng(self, name: str) -> random.Random:
        """Return the scenario's random generator; the same seed gives the same choices."""
        return random.Random(f"{self.seed} {name}")


class Trial:
    """A running fleet under load. Broken demands are collected as violations, not raised.

    Attributes:
        outages: starts of items that outages may have cost, for the checker.
    """

    def __init__(
        self, fleet: Fleet, load: Load, rng: random.Random, outcome: Outcome, *, patience: float = 1.0
    ) -> None:
        self.fleet = fleet
        self.load = load
        self.rng = rng
        self.ledger = fleet.ledger()
        self.outages = 0
        self._outcome = outcome
        self._patience = patience

    def add_figure(self, name: str, value: Figure) -> None:
        """Put a number into the report."""
        self._outcome.figures[name] = round(value, 3) if isinstance(value, float) else value

    def demand(self, name: str, holds: bool, detail: object = "") -> None:
        """Add a violation unless the demand holds."""
        if not holds:
            self._outcome.violations.append(Violation(self._outcome.name, name, str(detail)))

    def demand_at_most(self, name: str, value: float, limit: float) -> None:
        """Put a number into the report, and add a violation if it exceeds the limit."""
        self.add_figure(f"{name} (<= {limit:g})", value)
        self.demand(name, value <= limit, f"{value:.3f} > {limit:g}")

    def demand_within(self, name: str, seconds: float, limit_s: float) -> None:
        """Put a time into the report, and add a violation if it exceeds the limit, with the patience of the run."""
        self.demand_at_most(name, seconds, limit_s * self._patience)

    def time_until(self, condition: Callable[[], Any], limit_s: float, *, what: str) -> float:
        """Return the seconds until the condition holds; add a violation when that takes longer than the limit."""
        began = time.monotonic()
        try:
            self.fleet.wait(condition, limit_s, what=what)
        except TimeoutError:
            self.demand(what, False, f"not within {limit_s:g} s")
        return time.monotonic() - began

    def wait_for_jobs(self, idle_s: float) -> None:
        """Wait until every job has ended, or none has for `idle_s`; the checker reports the others under I1."""
        self.load.wait(idle_s)

    def items(self) -> list[ItemView]:
        """Read every item."""
        return [item for job in collect(self.ledger).jobs.values() for item in job.items]

    def jobs_of(self, key_id: str) -> list[JobView]:
        """Read every job of an API key."""
        jobs = collect(self.ledger).jobs
        return [view for job, view in jobs.items() if self.ledger.redis.hget(keys.job(job), "key") == key_id]

    def item(self, job: str, index: int = 0) -> ItemView:
        view = self.ledger.job(job)
        assert view is not None
        return view.items[index]

    def slot_of(self, job: str, *, timeout_s: float = 20.0) -> str:
        """Wait until the job's first item has taken a step; return the slot that runs it."""

        def slot() -> str | None:
            item = self.item(job)
            return item.slot if item.state is State.RUNNING and item.progress and item.progress.step else None

        return str(self.fleet.wait(slot, timeout_s, what=f"a step of {job}"))

    def events(self, kind: str, **wanted: Any) -> list[history.Event]:
        """Return the events of a kind with these fields, from the history so far."""
        return [
            event
            for event in history.read(self.fleet.history.path)
            if event["kind"] == kind and all(event.get(name) == value for name, value in wanted.items())
        ]


def _pictures(fleet: Fleet) -> dict[str, Any]:
    """Return the checker's option that says which pictures are correct, if the workers do not draw the stub's."""
    if not fleet.plan.devices:
        return {}
    from chaos.group import OneDevice

    return {"picture_of": OneDevice(fleet.model_folder).picture}


@contextmanager
def trial(lab: Lab, outcome: Outcome, plan: Plan) -> Iterator[Trial]:
    """Run a fleet under load; after the block, check its history against the invariants."""
    folder = lab.folder / outcome.name.replace(" ", "-").replace("/", "-")
    folder.mkdir()
    rng = lab.rng(outcome.name)
    began = time.monotonic()
    with Fleet(folder, plan, lab.s3, rng) as fleet:
        with Load(fleet, rng) as load:
            running = Trial(fleet, load, rng, outcome, patience=lab.patience)
            try:
                yield running
            except TimeoutError as error:
                running.demand("in time", False, error)
        fleet.restore()
        events = history.read(fleet.history.path)
        final = collect(running.ledger)
        worker_s = (time.monotonic() - began) * plan.workers
        outcome.violations += check(
            events, final, fleet.store(), outages=running.outages, worker_s=worker_s, **_pictures(fleet)
        )
        if final.usage is not None:
            running.add_figure("images counted", final.usage.images)
            running.add_figure("GPU s", final.usage.gpu_ms / 1000)
            running.add_figure("GPU s without an image", final.usage.wasted_gpu_ms / 1000)
        items = [item for job in final.jobs.values() for item in job.items]
        running.add_figure("items", len(items))
        for state in State:
            if count := sum(item.state is state for item in items):
                running.add_figure(state.value, count)
    outcome.wall_s = time.monotonic() - began
