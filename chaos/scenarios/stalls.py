"""A Redis that stalls, changes its clock or its role, and connections that break, while every worker lives."""

from __future__ import annotations

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.trial import Lab, Outcome, Trial, trial

_FINISH_S = 60.0
_FREEZES = 3


def frozen(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F2 frozen: Redis stalls for longer than a lease, three times, and keeps its run id; no item may be requeued."""
    outcome = Outcome("F2 frozen", f"Redis frozen for longer than a lease, {_FREEZES} times; the workers live")
    if mutation is not Mutation.NONE:
        outcome = Outcome(f"F2 frozen with {mutation.value}", outcome.what, must_fail=True)
    # Reaping is far more frequent than renewing, so that it happens first when Redis is back.
    plan = Plan(workers=3, ttl_s=3.0, reap_s=0.05, renewals=3, step_s=0.1, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        jobs = [running.load.submit([prompt(running.rng, steps=(60, 60))]) for _ in range(plan.workers)]
        for job in jobs:
            running.slot_of(job)
        for _ in range(_FREEZES):
            running.fleet.freeze_redis(for_s=1.5 * plan.ttl_s)
            _wait_for_steps(running, jobs)
        running.wait_for_jobs(_FINISH_S)
        _demand_single_starts(running)
    return outcome


def _wait_for_steps(running: Trial, jobs: list[str]) -> None:
    """Wait until every unfinished item has taken a step since now."""
    before = {job: running.item(job).progress for job in jobs}

    def moved(job: str) -> bool:
        item = running.item(job)
        return item.finished_ms is not None or item.progress != before[job]

    running.fleet.wait(lambda: all(moved(job) for job in jobs), 20, what="a step of every item")


def _demand_single_starts(running: Trial) -> None:
    """Demand that every item has started once, and that none has failed."""
    items = running.items()
    again = [item.fence for item in items if item.fence > 1]
    lost = [item.error.code for item in items if item.error]
    running.add_figure("items with more than one start", len(again))
    running.add_figure("items that failed", len(lost))
    running.demand("no item is requeued while its worker lives", not again, again)
    running.demand("no item fails while its worker lives", not lost, lost)
