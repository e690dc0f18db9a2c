"""Storage that fails, and callers that cancel."""

from __future__ import annotations

import time

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.s3 import Faults
from chaos.trial import Lab, Outcome, Trial, trial
from shared.job import State

_FINISH_S = 60.0


def storage(lab: Lab, *, outage_s: float) -> Outcome:
    """F6: errors, silence and lost replies; outages shorter and longer than the retry budget."""
    outcome = Outcome("F6", f"S3 fails, then is away for {outage_s / 2:g} s and {outage_s * 2:g} s")
    with trial(lab, outcome, Plan(workers=2, ttl_s=2.0, budget_s=outage_s)) as running:
        running.fleet.s3.faults = Faults(errors=0.2, silences=0.05, ambiguous=0.05)
        _batch(running, 15)
        running.wait_for_jobs(_FINISH_S)
        running.demand("no failure under errors", _failed(running) == 0, _failed(running))
        running.fleet.s3.faults = Faults()
        _away(running, outage_s / 2)
        running.demand("an outage within the budget fails no item", _failed(running) == 0, _failed(running))
        _away(running, outage_s * 2)
        codes = {item.error.code for item in running.items() if item.error}
        running.demand("a longer outage fails items as storage_unavailable", codes <= {"storage_unavailable"}, codes)
        running.add_figure("S3 faults", sum(n for kind, n in running.fleet.s3.counts.items() if kind != "pass"))
        running.add_figure("attempts spent on the long outage", sum(item.attempt - 1 for item in running.items()))
        running.outages = 6
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


def _away(running: Trial, for_s: float) -> None:
    running.fleet.s3.faults = Faults(out=True)
    until = time.monotonic() + for_s
    _batch(running, 4)
    running.fleet.wait(lambda: time.monotonic() > until, for_s + 1, what="the end of the outage")
    running.fleet.s3.faults = Faults()
    running.wait_for_jobs(_FINISH_S)


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
        running.demand_at_most("cancel of a queued job s", slowest, 0.1)
        began = time.monotonic()
        running.load.cancel(blocker)
        running.load.cancel(blocker)
        running.time_until(lambda: running.item(blocker).state is State.CANCELED, 20, what="the running item's end")
        limit_s = plan.queue.renew_s + plan.step_s + 0.3
        running.demand_at_most("cancel of a running job s", time.monotonic() - began, limit_s)
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
