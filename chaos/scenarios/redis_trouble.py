"""A Redis that dies, is cut off or is full."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx2

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.trial import Lab, Outcome, Trial, trial
from shared.job import State

# Steps of an item that runs for 6 s.
_LONG = (60, 60)
_FINISH_S = 60.0


def grace(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F2: Redis is away for longer than a lease while every worker lives; no item may be requeued."""
    outcome = Outcome.for_mutation("F2", "Redis down for longer than a lease; the workers live", mutation)
    # Reaping is far more frequent than renewing, so that it happens first when Redis is back.
    plan = Plan(workers=3, ttl_s=3.0, reap_s=0.05, renewals=3, step_s=0.1, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        jobs = [running.load.submit([prompt(running.rng, steps=_LONG)]) for _ in range(3)]
        for job in jobs:
            running.slot_of(job)
        running.fleet.kill_redis(down_s=4.5)
        running.wait_for_jobs(_FINISH_S)
        requeued = [item.fence for item in running.items() if item.fence > 1]
        running.add_figure("requeued while their worker lives", len(requeued))
        running.demand("no item is requeued while its worker lives", not requeued, requeued)
    return outcome


def stopped(lab: Lab, *, down_s: float) -> Outcome:
    """F3: Redis is stopped; the API must answer 503 at once, to every client."""
    outcome = Outcome("F3", f"Redis stopped for {down_s:g} s")
    with trial(lab, outcome, Plan(workers=2, ttl_s=2.0, step_s=0.05)) as running:
        for _ in range(6):
            running.load.submit([prompt(running.rng, steps=(20, 40)) for _ in range(2)])
        killer = threading.Thread(target=running.fleet.kill_redis, kwargs={"down_s": down_s})
        killer.start()
        refused = list(_ask(running, down_s * 0.6, clients=60))
        killer.join()
        _report_answers(running, "stopped", refused)
        back = running.time_until(lambda: running.load.wait(0.1), 60, what="the end of all jobs")
        running.demand_within("all ended after Redis s", back, 30)
        running.outages = running.fleet.plan.workers
    return outcome


def black_hole(lab: Lab, *, long_s: float) -> Outcome:
    """F11: packets to Redis vanish, for shorter and for longer than a lease; also between the API and Redis."""
    outcome = Outcome("F11", f"no packet reaches Redis, for 1 s and for {long_s:g} s")
    plan = Plan(workers=2, ttl_s=4.0, step_s=0.1)
    with trial(lab, outcome, plan) as running:
        _short_cut(running)
        _long_cut(running, long_s)
        running.fleet.wires["api"].open.clear()
        _report_answers(running, "black hole", list(_ask(running, 6.0, clients=60)))
        running.fleet.wires["api"].open.set()
        running.time_until(lambda: running.load.submit([prompt(running.rng)]), 10, what="an accept after the heal")
        running.wait_for_jobs(_FINISH_S)
    return outcome


def _short_cut(running: Trial) -> None:
    job = running.load.submit([prompt(running.rng, steps=_LONG)])
    wire = running.fleet.wires[running.slot_of(job)]
    wire.open.clear()
    threading.Event().wait(1.0)
    wire.open.set()
    running.time_until(lambda: running.item(job).state is State.SUCCEEDED, 30, what="the end after a short cut")
    running.demand("a short cut costs no attempt", running.item(job).fence == 1, running.item(job).fence)


def _long_cut(running: Trial, long_s: float) -> None:
    job = running.load.submit([prompt(running.rng, steps=(100, 100))])
    slot = running.slot_of(job)
    running.fleet.wires[slot].open.clear()
    cut = time.monotonic()
    took = running.time_until(lambda: running.item(job).fence == 2, long_s + 20, what="the peer's claim")
    running.demand_within("cut to the peer's start s", took, running.fleet.plan.ttl_s + 3)
    running.fleet.wait(lambda: time.monotonic() - cut > long_s, long_s + 5, what="the end of the cut")
    running.fleet.wires[slot].open.set()
    healed = time.monotonic()
    running.time_until(lambda: running.item(job).state is State.SUCCEEDED, 40, what="the peer's end")
    # The other worker is kept down, so that only the one that was cut off can claim the next item.
    peer = next(name for name in running.fleet.workers if name != slot)
    running.fleet.kept_down.add(peer)
    running.fleet.kill(peer)
    mine = running.load.submit([prompt(running.rng)])
    running.time_until(lambda: running.item(mine).state is State.SUCCEEDED, 30, what="work after the heal")
    running.add_figure("consumes again after the heal s (with the peer's end)", time.monotonic() - healed)
    running.fleet.kept_down.clear()


def full(lab: Lab) -> Outcome:
    """F13: Redis refuses writes for longer than a lease, as with a full memory or disk."""
    outcome = Outcome("F13", "Redis is full for longer than a lease, then has room again")
    with trial(lab, outcome, Plan(workers=1, step_s=0.1)) as running:
        job = running.load.submit([prompt(running.rng, steps=(20, 20))])
        running.slot_of(job)
        running.ledger.redis.config_set("maxmemory", "1mb")
        [(status, _)] = _ask(running, 0.0, clients=1, method="POST")
        running.add_figure("POST while full", status)
        running.demand("accept is answered 503", status == httpx2.codes.SERVICE_UNAVAILABLE, status)
        threading.Event().wait(1.25 * running.fleet.plan.ttl_s)
        running.ledger.redis.config_set("maxmemory", "0")
        running.time_until(
            lambda: running.item(job).state is State.SUCCEEDED, 20, what="the commit after space returned"
        )
        running.wait_for_jobs(_FINISH_S)
        running.demand("no attempt is spent", running.item(job).fence == 1, running.item(job).fence)
    return outcome


def _ask(running: Trial, for_s: float, *, clients: int, method: str = "GET") -> Iterator[tuple[int, float]]:
    """Send requests from many clients at once for a while; yield each answer's status (0: no answer) and seconds."""
    answers: list[tuple[int, float]] = []
    until = time.monotonic() + for_s
    body = {"model": "flux2", "loras": [], "prompts": [prompt(running.rng)]} if method == "POST" else None

    def client() -> None:
        with httpx2.Client(base_url=running.fleet.url, timeout=10) as http:
            while True:
                began = time.monotonic()
                path = "/v1/inference" if body else "/v1/requests"
                try:
                    status = http.request(method, path, json=body).status_code
                except httpx2.TransportError:
                    status = 0
                answers.append((status, time.monotonic() - began))
                if time.monotonic() > until:
                    return
                threading.Event().wait(0.5)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from answers


def _report_answers(running: Trial, what: str, answers: list[tuple[int, float]]) -> None:
    unavailable = [seconds for status, seconds in answers if status == httpx2.codes.SERVICE_UNAVAILABLE]
    running.add_figure(f"503s while {what}", len(unavailable))
    running.demand(f"the API says 503 while {what}", bool(unavailable), sorted({status for status, _ in answers}))
    running.demand_within(f"slowest answer while {what} s", max(seconds for _, seconds in answers), 3)
