"""F20: two API processes behind one address end in turn, under load; callers repeat what got no answer."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Self

from chaos import figures, history
from chaos.fleet import Fleet, Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.trial import Lab, Outcome, Trial, trial

_TTL_S = 3.0
_CLIENTS = 3
_FINISH_S = 60.0
_START_S = 120.0
# One submit in so many is sent by two callers at once, and one job in so many is canceled.
_PAIRS, _CANCELS = 5, 10
_PAUSE_S = 0.2
_SERVER_ERRORS = range(500, 600)


class RestartInTurn(threading.Thread):
    """Ends each API process in turn, by SIGTERM and by SIGKILL, and kills a worker whenever one of them is away.

    Args:
        rounds: how often it ends each of them.
        on_turn: called while an API process is away.
    """

    def __init__(
        self, fleet: Fleet, rng: random.Random, *, rounds: int, on_turn: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name="chaos-restarts", daemon=True)
        self.problem = ""
        self._fleet = fleet
        self._rng = rng
        self._rounds = rounds
        self._on_turn = on_turn

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def run(self) -> None:
        ends = itertools.cycle((self._fleet.terminate, self._fleet.kill))
        try:
            for number in range(self._rounds):
                for api in self._fleet.apis:
                    self._restart(api, next(ends))
                # So that each process ends both ways.
                if number % 2 == 0:
                    next(ends)
        except TimeoutError as error:
            self.problem = str(error)

    def _restart(self, api: str, end: Callable[[str], object]) -> None:
        pid = self._fleet.pid(api)
        end(api)
        # The other API process has to find out that the worker is gone.
        self._fleet.kill(self._rng.choice(self._fleet.workers))
        self._on_turn()
        self._fleet.wait(
            lambda: self._fleet.pid(api) != pid and self._fleet.answers(api), _START_S, what=f"the restart of {api}"
        )


def two_apis(lab: Lab, *, rounds: int = 2, mutation: Mutation = Mutation.NONE) -> Outcome:
    """Restart two API processes in turn; nothing may be lost or doubled, and callers see no server error."""
    outcome = Outcome.for_mutation(
        "F20", f"two APIs behind one address end in turn, {2 * rounds} times, under load", mutation
    )
    plan = Plan(workers=3, apis=2, ttl_s=_TTL_S, max_attempts=10, mutation=mutation)
    with trial(lab, outcome, plan) as running:
        running.load.statuses.clear()
        times: list[float] = []
        restarts = RestartInTurn(running.fleet, running.rng, rounds=rounds)
        with restarts:
            threads = [threading.Thread(target=_submit_while, args=[running, restarts, times]) for _ in range(_CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        running.demand("each process came back", not restarts.problem, restarts.problem)
        running.wait_for_jobs(_FINISH_S)
        _report(running, times, rounds)
    return outcome


def _submit_while(running: Trial, restarts: RestartInTurn, times: list[float]) -> None:
    for number in itertools.count():
        if not restarts.is_alive():
            return
        began = time.monotonic()
        body = [prompt(running.rng, steps=(1, 5)) for _ in range(number % 3 + 1)]
        job = _submit_at_once(running, body) if number % _PAIRS == 0 else running.load.submit(body)
        times.append(time.monotonic() - began)
        if number % _CANCELS == 0:
            running.load.cancel(job)
        threading.Event().wait(_PAUSE_S)


def _submit_at_once(running: Trial, body: list[dict[str, object]]) -> str:
    """Send one job from two callers at once, whose connections lead to different processes; I7 checks the result."""
    name, jobs = running.load.new_name(), list[str]()
    threads = [threading.Thread(target=lambda: jobs.append(running.load.attempt(body, name=name)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.demand("two callers at once get one job", len(set(jobs)) == 1, jobs)
    return jobs[0]


def _report(running: Trial, times: list[float], rounds: int) -> None:
    statuses = running.load.statuses
    ends = [event["target"] for event in running.events("kill") + running.events("terminate")]
    running.add_figure("ends of API processes", sum(end in running.fleet.apis for end in ends))
    running.demand("each process ended as often", all(ends.count(api) == rounds for api in running.fleet.apis), ends)
    running.add_figure("submits", len(times))
    running.add_figure("calls without an answer", statuses[0])
    errors = {status: count for status, count in statuses.items() if status in _SERVER_ERRORS}
    running.demand("no server error", not errors, errors)
    running.demand("one of them always listens", not running.fleet.balancer.refused, running.fleet.balancer.refused)
    running.demand_within("slowest submit s", max(times), 5)
    events = history.read(running.fleet.history.path)
    running.demand_within("kill to start, slowest s", max(figures.kill_to_start(events, ttl_s=_TTL_S), default=0.0), 8)
