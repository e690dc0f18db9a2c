"""F21: API keys are revoked and rotated and reach their limits, while processes die."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Self

from api.doors.keyring import FRESH_S
from chaos.fleet import Plan
from chaos.load import prompt
from chaos.scenarios.two_apis import RestartInTurn
from chaos.trial import Lab, Outcome, Trial, trial
from shared.job import State

_TTL_S = 2.0
_STEP_S = 0.1
_FINISH_S = 90.0
# Items of the key with a daily limit, and queued ones of the key with that limit.
_DAILY, _QUEUED = 40, 5
# How long a rotated secret works on: 0.003 hours.
_KEPT_HOURS, _KEPT_S = "0.003", 10.8
# Steps of an item that runs until its worker is killed, and of all others.
_LONG, _SHORT = (150, 150), (1, 4)
# A process may have looked up the key up to FRESH_S ago; the rest is for a busy machine.
_LATE_S = FRESH_S + 1.0
_PAUSE_S = 0.1
_DAY_MS, _MINUTE_MS = 86_400_000, 60_000
_REVOKED, _REACHED = "UNAUTHORIZED", "key_limit_reached"


class Caller(threading.Thread):
    """Submits jobs of one item with one key until it is stopped, or its key is refused.

    Attributes:
        accepted: when each call began that was accepted.
        refusals: codes of the refused calls.
    """

    def __init__(self, running: Trial, key: str) -> None:
        super().__init__(name="chaos-caller", daemon=True)
        self.accepted: list[float] = []
        self.refusals: Counter[str] = Counter()
        self._running = running
        self._key = key
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(_PAUSE_S) and not self.refusals[_REVOKED]:
            began = time.monotonic()
            job, code = self._running.load.attempt([prompt(self._running.rng, steps=_SHORT)], key=self._key)
            if job:
                self.accepted.append(began)
            else:
                self.refusals[code] += 1


def key_storm(lab: Lab) -> Outcome:
    """Revoke, rotate and exhaust keys in the middle of a storm; their accepted jobs end, and their limits are exact."""
    outcome = Outcome("F21", "API keys revoked, rotated and at their limits, while APIs, workers and Redis die")
    plan = Plan(workers=3, apis=2, ttl_s=_TTL_S, step_s=_STEP_S, max_attempts=10)
    with trial(lab, outcome, plan) as running:
        _wait_for_midnight(running)
        running.load.key = _create(running, "operator", "--role", "admin")
        steady = _create(running, "steady")
        leaver = _create(running, "leaver")
        turner = _create(running, "turner")
        capped = _create(running, "capped", "--items-per-day", str(_DAILY))
        narrow = _create(running, "narrow", "--queued-items", str(_QUEUED))
        with ExitStack() as stack:
            callers = {
                key: [stack.enter_context(Caller(running, key)) for _ in range(count)]
                for key, count in ((steady, 1), (leaver, 2), (turner, 2), (capped, 3), (narrow, 3))
            }
            restarts = RestartInTurn(running.fleet, running.rng, rounds=1)
            with restarts:
                running.fleet.kill_redis(down_s=0.5)
                fresh = running.fleet.flux2("keys", "rotate", _id(turner), "--keep-hours", _KEPT_HOURS)
                running.fleet.flux2("keys", "revoke", _id(leaver))
                callers[fresh] = [stack.enter_context(Caller(running, fresh))]
            running.demand("each process came back", not restarts.problem, restarts.problem)
            revoked, rotated_out = _ends(running, leaver, turner)
            threading.Event().wait(max(0.0, max(revoked, rotated_out) + _LATE_S - time.monotonic()))
        running.outages = running.fleet.plan.workers
        _demand_end(running, "revoked", callers[leaver], revoked)
        _demand_end(running, "rotated", callers[turner], rotated_out)
        later = max(began for caller in callers[turner] for began in caller.accepted) - (rotated_out - _KEPT_S)
        running.demand("the old secret works on", later > 0, f"last accepted {later:.1f} s after the rotation")
        running.demand("the new secret works", not callers[fresh][0].refusals, callers[fresh][0].refusals)
        running.demand("other keys work", not callers[steady][0].refusals, callers[steady][0].refusals)
        _demand_daily(running, capped, callers[capped])
        _demand_queued(running, narrow, callers[narrow])
        running.wait_for_jobs(_FINISH_S)
        code = running.load.attempt([prompt(running.rng)], key=narrow)[1]
        running.demand("an empty queue has room again", not code, code)
        running.wait_for_jobs(_FINISH_S)
        _demand_usage(running, callers)
        left = [item.state.value for view in running.jobs_of(_id(leaver)) for item in view.items]
        running.demand("accepted jobs of a revoked key succeed", set(left) == {State.SUCCEEDED.value}, Counter(left))
    return outcome


def _create(running: Trial, name: str, *options: str) -> str:
    """Make a key with a tenant of its own, as an operator does."""
    return running.fleet.flux2("keys", "create", name, "--tenant", name, *options)


def _id(key: str) -> str:
    return key.split("_")[1]


def _ends(running: Trial, leaver: str, turner: str) -> tuple[float, float]:
    """Return when one key was revoked and when the old secret of the other ends, by the clock of the history."""
    now_s = time.monotonic() - running.ledger.now_ms() / 1000
    left, turned = running.ledger.api_keys.find(_id(leaver)), running.ledger.api_keys.find(_id(turner))
    assert left is not None
    assert turned is not None
    return now_s + (left.revoked_ms or 0) / 1000, now_s + turned.previous_until_ms / 1000


def _demand_end(running: Trial, what: str, callers: Sequence[Caller], end: float) -> None:
    """Demand that a key was accepted until it was refused, and that no call began too long after its end."""
    accepted = [began for caller in callers for began in caller.accepted]
    running.add_figure(f"jobs of the {what} key", len(accepted))
    running.demand(f"the {what} key had jobs", bool(accepted))
    running.demand(f"the {what} key is refused", all(set(c.refusals) == {_REVOKED} for c in callers))
    late = [began - end for began in accepted if began > end + _LATE_S]
    running.demand(f"the {what} key is refused in time", not late, late)


def _demand_daily(running: Trial, key: str, callers: Sequence[Caller]) -> None:
    """Demand that exactly as many items are stored as the key may have in a day."""
    stored = sum(len(view.items) for view in running.jobs_of(_id(key)))
    running.add_figure("items of the key with a daily limit", stored)
    running.demand("the daily limit is exact", stored == _DAILY, f"{stored} of {_DAILY}")
    codes = {code for caller in callers for code in caller.refusals}
    running.demand("the daily limit is reached", codes == {_REACHED}, codes)


def _demand_queued(running: Trial, key: str, callers: Sequence[Caller]) -> None:
    """Demand that the limit of queued items is exact while no worker runs, from an empty queue and from a full one."""
    codes = {code for caller in callers for code in caller.refusals}
    running.demand("the limit of queued items is reached", codes == {_REACHED}, codes)
    running.wait_for_jobs(_FINISH_S)
    # Few enough to fit, one after the other: the last one makes the ledger count the queue while three items run.
    for job in [_submit(running, key, steps=_LONG) for _ in running.fleet.workers]:
        running.slot_of(job)
    for _ in range(_QUEUED - 2):
        _submit(running, key)
    _kill_workers(running)
    running.time_until(lambda: not _count(running, key, State.RUNNING), 20, what="the return of the killed items")
    returned = _count(running, key, State.QUEUED)
    running.demand("items return above the limit", returned > _QUEUED, returned)
    _submit_until_refused(running, key)
    running.demand("a full queue takes none", _count(running, key, State.QUEUED) == returned, returned)
    for view in running.jobs_of(_id(key)):
        running.load.cancel(view.job_id)
    _submit_until_refused(running, key)
    queued = _count(running, key, State.QUEUED)
    running.add_figure("items of the key with a limited queue", queued)
    running.demand("the limit of queued items is exact", queued == _QUEUED, f"{queued} of {_QUEUED}")
    running.fleet.kept_down.clear()


def _demand_usage(running: Trial, used: Iterable[str]) -> None:
    """Demand that each key is charged for exactly its images; I12 checks their sum."""
    usage = running.ledger.usage
    today, counted = usage.today(), Counter[str]()
    for row in usage.rows(today - timedelta(days=1), today):
        counted[row.key_id] += row.usage.images
    for key_id in {_id(key) for key in used}:
        items = [item for view in running.jobs_of(key_id) for item in view.items]
        images = sum(item.state is State.SUCCEEDED for item in items)
        running.demand("each key is charged for its images", counted[key_id] == images, f"{counted[key_id]}, {images}")


def _submit(running: Trial, key: str, *, steps: tuple[int, int] = _SHORT) -> str:
    job, code = running.load.attempt([prompt(running.rng, steps=steps)], key=key)
    running.demand("a key with room is accepted", bool(job), code)
    return job


def _kill_workers(running: Trial) -> None:
    running.fleet.kept_down.update(running.fleet.workers)
    for name in running.fleet.workers:
        running.fleet.kill(name)


def _submit_until_refused(running: Trial, key: str) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(running, key)) for _ in range(4)]
        running.time_until(lambda: all(caller.refusals for caller in callers), 60, what="refusals without workers")


def _count(running: Trial, key: str, state: State) -> int:
    return sum(item.state is state for view in running.jobs_of(_id(key)) for item in view.items)


def _wait_for_midnight(running: Trial) -> None:
    """Wait for the next day if this one ends within two minutes: limits of a day begin again then."""
    left_ms = _DAY_MS - running.ledger.now_ms() % _DAY_MS
    if left_ms < 2 * _MINUTE_MS:
        threading.Event().wait(left_ms / 1000 + 1)
