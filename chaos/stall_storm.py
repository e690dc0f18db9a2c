"""The storm with stalls instead of kills: Redis, network and workers pause, but nothing dies, so nothing runs twice."""

from __future__ import annotations

import random
import threading
from collections import Counter

from chaos import clock
from chaos.fleet import Fleet, Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.scenarios.stalls import demand_single_starts
from chaos.trial import Lab, Outcome, Trial, trial

_JOBS_PER_S = 3.0
_ITEMS = (1, 2, 3, 4, 7)
_STEPS = (10, 60)
_TTL_S = 4.0
# Lengths of stalls, in leases: one of all workers may outlast a lease, one of a single worker must leave time to renew.
_LONG, _SHORT = 1.4, 0.35
# Between two stalls, so that two short ones of one worker do not add up to more than a lease.
_CALM_S = 1.0
_IDLE_S = 60.0


class StallNemesis(threading.Thread):
    """Causes each of its stalls `rounds` times, in random order.

    Attributes:
        counts: stalls by kind that are over.
        kinds: the stalls of a round; a mutation needs only one.
    """

    def __init__(self, fleet: Fleet, rng: random.Random, *, rounds: int) -> None:
        super().__init__(name="chaos-stall-nemesis", daemon=True)
        self.counts: Counter[str] = Counter()
        self._fleet = fleet
        self._rng = rng
        self._client = fleet.ledger().redis
        self._rounds = rounds
        self._ahead = False
        self.kinds = [self.freeze_redis, self._cut_network, self._cut_worker, self._freeze_worker, self._reset]
        # The clock is set twice, forward and back.
        self.kinds += [self._set_clock] * 2

    def run(self) -> None:
        for _ in range(self._rounds):
            for stall in self._rng.sample(self.kinds, len(self.kinds)):
                stall()
                self.counts[stall.__name__.removeprefix("_").replace("_", " ")] += 1
                self._pause(_CALM_S)

    def freeze_redis(self) -> None:
        self._fleet.freeze_redis(for_s=_LONG * _TTL_S)

    def _cut_network(self) -> None:
        self._cut(list(self._fleet.wires), _LONG)

    def _cut_worker(self) -> None:
        self._cut([self._rng.choice(self._fleet.workers)], _SHORT)

    def _freeze_worker(self) -> None:
        name = self._rng.choice(self._fleet.workers)
        self._fleet.freeze(name)
        self._pause(_SHORT * _TTL_S)
        self._fleet.thaw(name)

    def _reset(self) -> None:
        for wire in self._fleet.wires.values():
            wire.reset()

    def _set_clock(self) -> None:
        clock.shift(self._client, -clock.HOUR_MS if self._ahead else clock.HOUR_MS)
        self._ahead = not self._ahead

    def _cut(self, names: list[str], share: float) -> None:
        for name in names:
            self._fleet.wires[name].open.clear()
        self._pause(share * _TTL_S)
        # In any order: the API may pass before a worker can renew.
        for name in self._rng.sample(names, len(names)):
            self._fleet.wires[name].open.set()

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)


def stall_storm(lab: Lab, *, rounds: int = 1, mutation: Mutation = Mutation.NONE) -> Outcome:
    """Run all stalls under load; every item may start once only."""
    outcome = Outcome.for_mutation(
        "storm of stalls", "Redis, network and workers pause, connections break, clock steps", mutation
    )
    plan = Plan(workers=3, ttl_s=_TTL_S, clock_moves=True, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        nemesis = StallNemesis(running.fleet, running.rng, rounds=rounds)
        if mutation is not Mutation.NONE:
            nemesis.kinds = [nemesis.freeze_redis]
        _submit_while(running, nemesis)
        if mutation is Mutation.NONE:
            running.wait_for_jobs(_IDLE_S)
        starts = Counter(event["item"] for event in running.events("claim"))
        twice = {item: count for item, count in starts.items() if count > 1}
        for kind, count in sorted(nemesis.counts.items()):
            running.add_figure(kind, count)
        running.demand("every stall happened", nemesis.counts.total() == rounds * len(nemesis.kinds), nemesis.counts)
        running.add_figure("starts", starts.total())
        running.demand("one start an item", not twice, twice)
        running.demand("no process ends", not running.events("restart"), running.events("restart"))
        demand_single_starts(running)
    return outcome


def _submit_while(running: Trial, nemesis: StallNemesis) -> None:
    # The first stall must hit running items.
    running.load.submit([prompt(running.rng, steps=(_STEPS[1], _STEPS[1])) for _ in running.fleet.workers])
    running.fleet.wait(lambda: running.events("claim"), 20, what="the first claim")
    nemesis.start()
    number = 0
    while nemesis.is_alive():
        count = _ITEMS[number % len(_ITEMS)]
        running.load.submit([prompt(running.rng, steps=_STEPS) for _ in range(count)])
        number += 1
        threading.Event().wait(1 / _JOBS_PER_S)
    nemesis.join()
