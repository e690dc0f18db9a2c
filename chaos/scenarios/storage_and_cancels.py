"""Storage that fails, and callers that cancel."""

from __future__ import annotations

import time

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.s3 import Faults
from chaos.trial import Lab, Outcome, Trial, trial
from shared.job import State

_FINISH_S = 60.0
_WAKEUPS_S = 0.3


def storage(lab: Lab, *, budget_s: float) -> Outcome:
    """F6: errors, silence and lost replies; an outage within the retry budget, and one longer than all attempts."""
    plan = Plan(workers=4, ttl_s=2.0, budget_s=budget_s)
    short_s, long_s = budget_s / 2, budget_s * (plan.max_attempts + 1)
    outcome = Outcome("F6", f"S3 fails, then is away for {short_s:g} s and {long_s:g} s")
    with trial(lab, outcome, plan) as running:
        running.fleet.s3.faults = Faults(errors=0.2, silences=0.05, ambiguous=0.05)
        _batch(running, 15)
        running.wait_for_jobs(_FINISH_S)
        running.demand("no failure under errors", _failed(running) == 0, _failed(running))
        running.fleet.s3.faults = Faults()
        _run_outage(running, short_s, jobs=4)
        running.demand("an outage within the budget fails no item", _failed(running) == 0, _failed(running))
        # One item for several idle workers: each of them could spend an attempt on finding out for itself.
        claims = _run_outage(running, long_s, jobs=1)
        running.demand("an outage longer than all attempts fails no item", _failed(running) == 0, _failed(running))
        running.demand_at_most("starts during the long outage", claims, 1)
        running.add_figure("S3 faults", sum(n for kind, n in running.fleet.s3.counts.items() if kind != "pass"))
        running.add_figure("attempts counted for outages", sum(item.attempt - 1 for item in running.items()))
        running.outages = 2 * plan.workers
    return outcome


def slow_storage(lab: Lab) -> Outcome:
    """F6 with a slow wire: the lease is renewed during an upload that takes longer than two leases."""
    outcome = Outcome("F6 slow", "an upload takes longer than two leases")
    with trial(lab, outcome, Plan(workers=2, ttl_s=2.0, s3_timeout_s=30.0, budget_s=30.0)) as running:
        running.fleet.s3.faults = Faults(bytes_per_s=150)
        _batch(running, 4)
        running.wait_for_jobs(_FINISH_S)
        slowest = max(item.result.timings["upload"] for item in running.items() if item.result)
        running.add_figure("slowest upload s", slowest)
        running.demand("the upload took longer than two leases", slowest > 2 * running.fleet.plan.ttl_s, slowest)
        fences = {item.fence for item in running.items()}
        running.demand("no lease was lost", fences == {1}, fences)
    return outcome


def _run_outage(running: Trial, for_s: float, *, jobs: int) -> int:
    """Submit jobs during an outage and wait for them after it; return the number of starts during the outage."""
    before = len(running.events("claim"))
    running.fleet.s3.faults = Faults(out=True)
    until = time.monotonic() + for_s
    _batch(running, jobs)
    while time.monotonic() < until:
        # So that every idle worker is asked to claim, and not only the one that happens to be next.
        running.fleet.send_wakeups(running.fleet.plan.workers)
        _pause(running, _WAKEUPS_S)
    starts = len(running.events("claim")) - before
    running.fleet.s3.faults = Faults()
    running.wait_for_jobs(_FINISH_S)
    return starts


def _pause(running: Trial, for_s: float) -> None:
    until = time.monotonic() + for_s
    running.fleet.wait(lambda: time.monotonic() > until, for_s + 1, what="the end of a pause")


def _batch(running: Trial, jobs: int) -> None:
    for _ in range(jobs):
        running.load.submit([prompt(running.rng)])


def _failed(running: Trial) -> int:
    return sum(item.state is State.FAILED for item in running.items())


def cancels(lab: Lab) -> Outcome:
    """F8: queued and running jobs are canceled, each twice."""
    outcome = Outcome("F8", "cancel queued and running jobs, each twice")
    plan = Plan(workers=1, step_s=0.2)
    with trial(lab, outcome, plan) as running:
        blocker = running.load.submit([prompt(running.rng, steps=(100, 100))])
        running.slot_of(blocker)
        queued = [running.load.submit([prompt(running.rng)]) for _ in range(30)]
        slowest = max(_cancel(running, job) for job in queued)
        running.demand_within("cancel of a queued job s", slowest, 0.1)
        began = time.monotonic()
        running.load.cancel(blocker)
        running.load.cancel(blocker)
        running.time_until(lambda: running.item(blocker).state is State.CANCELED, 20, what="the running item's end")
        limit_s = plan.queue.renew_s + plan.step_s + 0.3
        running.demand_within("cancel of a running job s", time.monotonic() - began, limit_s)
        running.wait_for_jobs(_FINISH_S)
    return outcome


def _cancel(running: Trial, job: str) -> float:
    """Return the seconds until the cancel of a queued job is answered; cancel again, which must change nothing."""
    began = time.monotonic()
    running.load.cancel(job)
    took = time.monotonic() - began
    running.demand("a canceled queued job has ended", running.item(job).state is State.CANCELED, job)
    running.load.cancel(job)
    return took
