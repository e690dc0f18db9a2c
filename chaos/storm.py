"""F1, F2, F4, F6 and F8 at once: load under SIGKILL and freezes, with a Redis, an API and an S3 that fail."""

from __future__ import annotations

import heapq
import random
import threading
import time

from chaos import figures, history
from chaos.fleet import Fleet, Plan
from chaos.load import prompt
from chaos.s3 import Faults
from chaos.trial import Lab, Outcome, Trial, trial

# Items of a job, in turn: 3.4 on average.
_ITEMS = (1, 2, 2, 3, 3, 3, 4, 4, 5, 7)
_JOBS_PER_S = 4.0
_KILL_S = 2.0
_FREEZE = 0.3
# Share of killed workers that stay down past their lease, as if their host were gone.
_GONE = 0.3
_CANCEL = 0.1
_DROP = 0.02
# Share of jobs with a deadline, some of which pass while their items wait.
_WITH_DEADLINE, _DEADLINE_S = 0.15, (0.2, 10.0)
# If no job ends for this long, the remaining ones never will.
_IDLE_S = 60.0


class Nemesis(threading.Thread):
    """Kills and freezes processes at random until stopped."""

    def __init__(self, fleet: Fleet, rng: random.Random, *, redis_kills: int, span_s: float) -> None:
        super().__init__(name="chaos-nemesis", daemon=True)
        self._fleet = fleet
        self._rng = rng
        self._stopped = threading.Event()
        # Not in the first and last tenth, where little runs.
        spots = sorted(rng.uniform(0.1, 0.9) * span_s for _ in range(redis_kills))
        now = time.monotonic()
        self._redis_at = [now + spot for spot in spots]
        self._api_at = [now + rng.uniform(0.1, 0.9) * span_s for _ in range(2)]
        self._thaw_at: list[tuple[float, str]] = []
        self._back_at: list[tuple[float, str]] = []

    def run(self) -> None:
        kill_at = time.monotonic() + _KILL_S
        while not self._stopped.wait(0.05):
            now = time.monotonic()
            if now >= kill_at:
                kill_at = now + _KILL_S
                self._strike()
            while self._thaw_at and self._thaw_at[0][0] <= now:
                self._fleet.thaw(heapq.heappop(self._thaw_at)[1])
            while self._back_at and self._back_at[0][0] <= now:
                self._fleet.kept_down.discard(heapq.heappop(self._back_at)[1])
            if self._redis_at and now >= self._redis_at[0]:
                self._redis_at.pop(0)
                self._fleet.kill_redis(down_s=1.0)
            if self._api_at and now >= self._api_at[0]:
                self._api_at.pop(0)
                self._fleet.kill("api")
        while self._thaw_at:
            self._fleet.thaw(heapq.heappop(self._thaw_at)[1])

    def stop(self) -> None:
        """Stop, and thaw every process."""
        self._stopped.set()
        self.join()

    def _strike(self) -> None:
        hit = {name for _, name in (*self._thaw_at, *self._back_at)}
        free = [name for name in self._fleet.workers if name not in hit]
        victim = self._rng.choice(free)
        until = time.monotonic() + self._fleet.plan.ttl_s + 1.5
        if len(free) > 2 and self._rng.random() < _GONE:
            self._fleet.kept_down.add(victim)
            heapq.heappush(self._back_at, (until, victim))
        self._fleet.kill(victim)
        peers = [name for name in free if name != victim]
        if len(peers) > 1 and self._rng.random() < _FREEZE:
            peer = self._rng.choice(peers)
            self._fleet.freeze(peer)
            heapq.heappush(self._thaw_at, (until, peer))


def storm(lab: Lab, *, jobs: int) -> Outcome:
    """Run all faults at once."""
    redis_kills = min(3, max(1, jobs // 100))
    outcome = Outcome(
        "F1 F2 F4 F6 F8",
        f"{jobs} jobs under SIGKILL each {_KILL_S:g} s, freezes, Redis kills, lost wake-ups, failing S3",
    )
    # About one attempt in ten is killed, so one item in a thousand loses three in a row and would fail by right.
    with trial(lab, outcome, Plan(workers=3, max_attempts=10)) as running:
        running.fleet.s3.faults = Faults(errors=0.1, silences=0.03, ambiguous=0.05)
        span_s = jobs / _JOBS_PER_S
        nemesis = Nemesis(running.fleet, running.rng, redis_kills=redis_kills, span_s=span_s)
        nemesis.start()
        try:
            dropped = _load(running, jobs)
            running.wait_for_jobs(_IDLE_S)
        finally:
            nemesis.stop()
        running.wait_for_jobs(_IDLE_S)
        running.outages = redis_kills * running.fleet.plan.workers
        _report(running, outcome, dropped)
    return outcome


def _load(running: Trial, jobs: int) -> int:
    """Submit at a steady rate, cancel some jobs a little later and delete wake-ups; return how many were deleted."""
    rng, cancels, dropped = running.rng, list[tuple[float, str]](), 0
    began = time.monotonic()
    for number in range(jobs):
        time_left = began + number / _JOBS_PER_S - time.monotonic()
        threading.Event().wait(max(0.0, time_left))
        prompts = [prompt(rng) for _ in range(_ITEMS[number % len(_ITEMS)])]
        deadline = {"deadline_s": rng.uniform(*_DEADLINE_S)} if rng.random() < _WITH_DEADLINE else {}
        job = running.load.submit(prompts, twice=number % 10 == 0, **deadline)
        if number % 50 == 0:
            running.load.submit_invalid()
        if rng.random() < _CANCEL:
            for _ in range(rng.choice((1, 2))):
                heapq.heappush(cancels, (time.monotonic() + rng.uniform(0, 4), job))
        while cancels and cancels[0][0] <= time.monotonic():
            running.load.cancel(heapq.heappop(cancels)[1])
        if rng.random() < _DROP * 3.4 and running.fleet.lose_wakeup():
            dropped += 1
    for _, job in sorted(cancels):
        running.load.cancel(job)
    return dropped


def _report(running: Trial, outcome: Outcome, dropped: int) -> None:
    events = history.read(running.fleet.history.path)
    count = {kind: sum(event["kind"] == kind for event in events) for kind in ("kill", "freeze", "redis down")}
    times = figures.kill_to_start(events, ttl_s=running.fleet.plan.ttl_s)
    ttl_s = running.fleet.plan.ttl_s
    running.add_figure("jobs", len(running.load.jobs))
    running.add_figure("kills", count["kill"])
    running.add_figure("freezes", count["freeze"])
    running.add_figure("Redis kills", count["redis down"])
    running.add_figure("wake-ups dropped", dropped)
    running.add_figure("S3 faults", sum(n for kind, n in running.fleet.s3.counts.items() if kind != "pass"))
    running.add_figure("stale commits refused", sum(e["kind"] == "commit" and e["answer"] == "stale" for e in events))
    running.add_figure(
        "items past their deadline",
        sum(item.state.value == "canceled" and item.error is not None for item in running.items()),
    )
    running.add_figure("recoveries", len(times))
    running.demand_within("kill to start p50 s", figures.p50(times), ttl_s + 1)
    running.demand_within("kill to start p99 s", figures.p99(times), ttl_s + 3)
    running.demand_within("Redis back to start, slowest s", max(figures.redis_to_start(events), default=0.0), 3)
    running.demand("no FAILED", "failed" not in {item.state.value for item in running.items()}, "an item failed")
