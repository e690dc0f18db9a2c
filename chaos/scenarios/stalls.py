"""A Redis that stalls, changes its clock or its role, and connections that break, while every worker lives."""

from __future__ import annotations

import threading
import time

from chaos import clock
from chaos.checker import collect
from chaos.fleet import Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.trial import Lab, Outcome, Trial, trial
from shared.errors import ServerFailed
from shared.job import State

# Steps of an item that runs for 6 s.
_LONG = (60, 60)
_STEP_S = 0.1
_TTL_S = 3.0
_FREEZES = 3
_CUTS = 3
_FINISH_S = 30.0


def frozen(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F2 frozen: Redis stalls for longer than a lease, three times, and keeps its run id; no item may be requeued."""
    freezes = 1 if mutation is Mutation.GRACE else _FREEZES
    outcome = Outcome.for_mutation(
        "F2 frozen", f"Redis frozen for longer than a lease, {freezes} times; the workers live", mutation
    )
    # Reaping is far more frequent than renewing, so that it happens first when Redis is back.
    plan = Plan(workers=3, ttl_s=_TTL_S, reap_s=0.05, renewals=3, step_s=_STEP_S, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        jobs = _start_long_items(running, 3)
        for _ in range(freezes):
            running.fleet.freeze_redis(for_s=1.5 * _TTL_S)
            _wait_for_steps(running, jobs)
        if mutation is Mutation.NONE:
            running.wait_for_jobs(_FINISH_S)
        demand_single_starts(running)
    return outcome


def set_clock(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F16: the clock goes an hour forward, then back while a worker dies; only the item of the dead one runs again."""
    outcome = Outcome.for_mutation("F16", "the clock of Redis is set an hour forward, then back", mutation)
    plan = Plan(workers=3, ttl_s=_TTL_S, step_s=_STEP_S, clock_moves=True, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        living, orphaned = _start_long_items(running, 2)
        clock.shift(running.ledger.redis, clock.HOUR_MS)
        _wait_for_steps(running, [living, orphaned])
        victim = running.slot_of(orphaned)
        running.fleet.kept_down.add(victim)
        clock.shift(running.ledger.redis, -clock.HOUR_MS)
        running.fleet.kill(victim)
        took = running.time_until(lambda: running.item(orphaned).fence == 2, 20, what="the start on another worker")
        running.demand_within("killed to started s", took, 2 * _TTL_S)
        running.fleet.kept_down.clear()
        if mutation is Mutation.NONE:
            running.wait_for_jobs(_FINISH_S)
        demand_single_starts(running, apart_from=orphaned)
    return outcome


def cut(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F17: every connection to Redis breaks three times in three seconds, each time with a wake-up on its way."""
    outcome = Outcome.for_mutation("F17", f"all connections to Redis cut {_CUTS} times in {_CUTS} s", mutation)
    with trial(lab, outcome, Plan(workers=2, step_s=_STEP_S, mutation=mutation)) as running:
        _start_long_items(running, 1)
        pops = _pops(running)
        running.fleet.wait(lambda: _pops(running) > pops, 20, what="a new pop of the idle worker")
        lost = sum(_lose_wakeup(running) for _ in range(_CUTS))
        running.add_figure("wake-ups lost", lost)
        if not lost:
            # No violation: that is the expected result of a mutation.
            raise ServerFailed("no wake-up was lost; run the scenario on a less busy machine")
        running.time_until(lambda: running.load.wait(0.1), 10, what="the end of all items after the last cut")
        _demand_survival(running)
        demand_single_starts(running)
    return outcome


def _pops(running: Trial) -> int:
    """Count the calls by which idle workers wait for a message; each takes a second."""
    return int(running.ledger.redis.info("commandstats").get("cmdstat_brpop", {"calls": 0})["calls"])


def _lose_wakeup(running: Trial) -> bool:
    """Submit a job, and within a second break every connection; return whether its wake-up was lost with one."""
    fleet, until = running.fleet, time.monotonic() + 1.0
    for name in fleet.workers:
        fleet.wires[name].open.clear()
    running.load.submit([prompt(running.rng)])
    # Redis hands the wake-up to the pop of the idle worker, but the wire does not.
    while (waiting := running.ledger.wakeups.count("flux2")) and time.monotonic() < until:
        threading.Event().wait(0.02)
    threading.Event().wait(max(0.0, until - time.monotonic()))
    for wire in fleet.wires.values():
        wire.reset()
        wire.open.set()
    return waiting == 0


def replica(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F18: Redis becomes a replica for longer than a lease, keeps its data and refuses writes; then it is a master."""
    outcome = Outcome.for_mutation("F18", "Redis becomes a replica under live workers, and a master again", mutation)
    with trial(lab, outcome, Plan(workers=3, ttl_s=_TTL_S, step_s=_STEP_S, mutation=mutation)) as running:
        client = running.ledger.redis
        jobs = _start_long_items(running, 2)
        # Nothing listens on port 1.
        client.replicaof("127.0.0.1", 1)
        threading.Event().wait(1.5 * _TTL_S)
        client.replicaof("NO", "ONE")
        _wait_for_steps(running, jobs)
        later = running.load.submit([prompt(running.rng)])
        took = running.time_until(lambda: running.item(later).state is not State.QUEUED, 20, what="a claim afterwards")
        running.demand_within("accepted to started s", took, 5)
        if mutation is Mutation.NONE:
            running.wait_for_jobs(_FINISH_S)
        _demand_survival(running)
        demand_single_starts(running)
    return outcome


def demand_single_starts(running: Trial, *, apart_from: str = "") -> None:
    """Demand that every item has started once, and that none has failed; apart from those of one job."""
    items = [item for job, view in collect(running.ledger).jobs.items() if job != apart_from for item in view.items]
    again = [item.fence for item in items if item.fence > 1]
    lost = [item.error.code for item in items if item.error]
    running.add_figure("items with more than one start", len(again))
    running.demand("no item is requeued while its worker lives", not again, again)
    running.demand("no item fails while its worker lives", not lost, lost)


def _demand_survival(running: Trial) -> None:
    restarts = running.events("restart")
    running.demand("no process ends", not restarts, restarts)


def _start_long_items(running: Trial, count: int) -> list[str]:
    """Submit jobs of one long item each, and wait until each has taken a step."""
    jobs = [running.load.submit([prompt(running.rng, steps=_LONG)]) for _ in range(count)]
    for job in jobs:
        running.slot_of(job)
    return jobs


def _wait_for_steps(running: Trial, jobs: list[str]) -> None:
    """Wait until each item has ended, or taken a step since now."""
    before = {job: running.item(job).progress for job in jobs}

    def moved(job: str) -> bool:
        item = running.item(job)
        return item.finished_ms is not None or item.progress != before[job]

    running.fleet.wait(lambda: all(moved(job) for job in jobs), 20, what="a step of every item")
