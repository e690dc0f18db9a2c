"""Workers that die, freeze, hang or get SIGTERM."""

from __future__ import annotations

import time
from functools import partial

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.mutate import Mutation
from chaos.stub import CRASH, EXIT, FAULT, FREEZE_BEFORE_COMMIT, FREEZE_IN_UPLOAD, HANG
from chaos.trial import Lab, Outcome, Trial, trial
from shared.errors import ServerFailed
from shared.job import TERMINAL, State

_FINISH_S = 60.0
_TRIES = 5


def lost_message(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F5: a wake-up is lost with a worker that dies right after Redis sent it; plain Celery never runs its item."""
    outcome = Outcome.for_mutation("F5", "a wake-up dies with a frozen worker", mutation)
    with trial(lab, outcome, Plan(workers=1, mutation=mutation)) as running:
        fleet = running.fleet
        fleet.kept_down.add("worker-0")
        job = _lose_wakeup(running)
        fleet.kill("worker-0")
        fleet.kept_down.clear()
        took = running.time_until(lambda: running.item(job).state is not State.QUEUED, 15, what="the item's start")
        running.demand_within("killed to started s", took, 10)
        running.wait_for_jobs(20)
    return outcome


def _lose_wakeup(running: Trial) -> str:
    """Submit jobs until the wake-up of one goes to the only worker while it is frozen; return that job."""
    for _ in range(_TRIES):
        job = _submit_to_frozen_worker(running)
        # Redis wrote the message to the socket of the frozen pop, where no process will ever read it.
        if running.ledger.wakeups.count("flux2") == 0:
            return job
        # The pop ends after a second; on a busy machine the message may arrive later.
        running.fleet.thaw("worker-0")
        running.fleet.wait(partial(_has_ended, running, job), 30, what="the end of the item")
    # No TimeoutError: it would count as a violation, and a violation is the expected result of a mutation.
    raise ServerFailed(f"no wake-up was lost in {_TRIES} tries; run the scenario on a less busy machine")


def _submit_to_frozen_worker(running: Trial) -> str:
    """Freeze the only worker in its blocking pop, submit a job and wait until its wake-up is sent."""
    running.fleet.wait(lambda: _blocked(running) == 1, 30, what="the worker's blocking pop")
    running.fleet.freeze("worker-0")
    pushes = _pushes(running)
    job = running.load.submit([prompt(running.rng)])
    running.fleet.wait(lambda: _pushes(running) > pushes, 10, what="the wake-up")
    return job


def _has_ended(running: Trial, job: str) -> bool:
    return running.item(job).state in TERMINAL


def _blocked(running: Trial) -> int:
    return sum("b" in client["flags"] for client in running.ledger.redis.client_list())


def _pushes(running: Trial) -> int:
    """Count the messages sent since Redis started; kombu sends each by LPUSH."""
    return int(running.ledger.redis.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])


def zombies(lab: Lab, mutation: Mutation = Mutation.NONE) -> Outcome:
    """F7: a worker freezes in its upload, and another between upload and commit, until a peer owns the item."""
    outcome = Outcome.for_mutation("F7", "frozen in the upload and before the commit, past the lease", mutation)
    with trial(lab, outcome, Plan(workers=2, ttl_s=2.0, step_s=0.1, mutation=mutation)) as running:
        for text in (FREEZE_IN_UPLOAD, FREEZE_BEFORE_COMMIT):
            _zombie(running, text)
        running.wait_for_jobs(_FINISH_S)
    return outcome


def _zombie(running: Trial, text: str) -> None:
    job = running.load.submit([prompt(running.rng, text=text, steps=(20, 20))])
    item = f"{job}:0"
    [froze] = running.fleet.wait(lambda: running.events("froze", item=item), 30, what="the freeze")
    running.fleet.wait(lambda: running.events("claim", item=item, fence=2), 30, what="the peer's claim")
    zombie = next(name for name in running.fleet.workers if running.fleet.pid(name) == froze["pid"])
    running.fleet.thaw(zombie)
    running.time_until(lambda: running.item(job).state is State.SUCCEEDED, 30, what=f"the end of {item}")
    if text == FREEZE_BEFORE_COMMIT:
        [late] = running.fleet.wait(lambda: running.events("commit", item=item, fence=1), 30, what="the late commit")
        running.demand("the late commit is refused", late["answer"] == "stale", late["answer"])
    key = f"results/{job}/0/1/image.png"
    gone = running.time_until(lambda: not running.fleet.store().exists(key), 8, what=f"the removal of {key}")
    running.add_figure(f"zombie's image removed after s, {text}", gone)


def rolling_restart(lab: Lab) -> Outcome:
    """F9: every worker gets SIGTERM in turn, twice, under load with items longer than the drain."""
    outcome = Outcome("F9", "SIGTERM to each worker in turn, twice")
    plan = Plan(workers=3, drain_s=1.0, step_s=0.1)
    with trial(lab, outcome, plan) as running:
        for _ in range(12):
            running.load.submit([prompt(running.rng, steps=(5, 40)) for _ in range(3)])
        slowest = max(_replace(running, name) for name in running.fleet.workers * 2)
        running.wait_for_jobs(_FINISH_S)
        running.demand_within("SIGTERM to end s", slowest, plan.drain_s + 1)
        counted = [item.attempt for item in running.items() if item.attempt != 1]
        running.demand("no attempt is consumed", not counted, counted)
        running.add_figure("attempts consumed", len(counted))
        running.add_figure("handed over", sum(item.fence > 1 for item in running.items()))
    return outcome


def _replace(running: Trial, name: str) -> float:
    """Return the seconds from a busy worker's SIGTERM to its end; wait until its successor runs."""
    running.time_until(lambda: running.events("claim", slot=name), 30, what=f"a claim of {name}")
    pid = running.fleet.terminate(name)
    took = running.time_until(lambda: not is_alive(pid), 30, what=f"the end of {name}")
    running.fleet.wait(lambda: running.fleet.pid(name) != pid, 30, what=f"the restart of {name}")
    return took


def poison(lab: Lab) -> Outcome:
    """F10: among sound items, some that end their worker, crash it or break its device."""
    outcome = Outcome("F10", "items that exit, crash and break the device")
    with trial(lab, outcome, Plan(workers=2, ttl_s=2.0)) as running:
        poisoned = {text: running.load.submit([prompt(running.rng, text=text)]) for text in (EXIT, CRASH, FAULT)}
        for _ in range(20):
            running.load.submit([prompt(running.rng)])
        running.wait_for_jobs(_FINISH_S)
        for text, job in poisoned.items():
            item = running.item(job)
            code = item.error.code if item.error else item.state.value
            running.add_figure(text, f"{code} after {item.attempt} attempts")
            running.demand(text, (code, item.attempt) == ("gpu_fault" if text == FAULT else "worker_lost", 3), code)
        unharmed = [item.state for item in running.items() if item.spec and item.spec.prompt == "a cat"]
        running.demand("other jobs are unharmed", set(unharmed) == {State.SUCCEEDED}, unharmed)
        # Each of the nine attempts costs a process; nothing else may.
        running.demand_at_most("restarts", len(running.events("restart")), 9)
        running.outages = len(running.events("restart"))
    return outcome


def hung_kernel(lab: Lab) -> Outcome:
    """F14: a render that never returns, while its process lives and renews the lease."""
    outcome = Outcome("F14", "a kernel that never returns")
    plan = Plan(workers=2, stall_s=2.0)
    with trial(lab, outcome, plan) as running:
        job = running.load.submit([prompt(running.rng, text=HANG)])
        for _ in range(10):
            running.load.submit([prompt(running.rng)])
        claim = running.fleet.wait(lambda: running.events("claim", item=f"{job}:0"), 20, what="its claim")[0]
        ended = running.time_until(lambda: not is_alive(claim["pid"]), 20, what="the end of the process")
        running.demand_within("hung to ended s", time.monotonic() - claim["t"], plan.stall_s + 3)
        running.add_figure("seen after s", ended)
        running.wait_for_jobs(_FINISH_S)
        item = running.item(job)
        code = item.error.code if item.error else item.state.value
        running.demand("it fails by name after its attempts", (code, item.attempt) == ("stalled", 3), code)
        running.outages = len(running.events("restart"))
    return outcome


def duplicates(lab: Lab) -> Outcome:
    """F12: each wake-up is sent four times; each item must start once."""
    outcome = Outcome("F12", "each wake-up is sent four times")
    with trial(lab, outcome, Plan(workers=2)) as running:
        for _ in range(15):
            running.load.submit([prompt(running.rng)])
            running.fleet.send_wakeups(3)
        running.wait_for_jobs(_FINISH_S)
        starts, items = len(running.events("claim")), len(running.items())
        running.add_figure("starts", starts)
        running.demand("one start an item", starts == items, f"{starts} of {items}")
    return outcome


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; a zombie, whose parent has not waited for it yet, does not."""
    if pid is None:
        return False
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
