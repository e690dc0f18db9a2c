"""A slot of two processes loses the one that follows."""

from __future__ import annotations

import os
import signal
import time

from chaos.fleet import Plan
from chaos.load import prompt
from chaos.scenarios.deaths import is_alive
from chaos.trial import Lab, Outcome, Trial, trial
from shared.job import State
from shared.ledger import keys

# Long enough to be hit in mid-run.
_STEPS, _SIDE = 150, 256
_FINISH_S = 240.0
# The follower's guard ends it when it notices the end of the slot.
_GUARD_S = 10.0


def split_slot(lab: Lab) -> Outcome:
    """F22: the follower of a slot of two processes is killed in mid-render, and the next one frozen."""
    outcome = Outcome("F22", "the follower of a slot of two processes is killed, then frozen, in mid-render")
    plan = Plan(workers=1, devices="cpu,cpu", stall_s=15.0)
    with trial(lab, outcome, plan) as running:
        for name, number in (("kill", signal.SIGKILL), ("freeze", signal.SIGSTOP)):
            _hit_follower(running, name, number)
            # As after ten minutes: a slot that fails on two items within them takes no more work.
            running.ledger.redis.delete(keys.faults("worker-0"))
        running.outages = len(running.events("restart"))
    return outcome


def _hit_follower(running: Trial, name: str, number: signal.Signals) -> None:
    """Hit the follower while an item renders; wait until another process of the slot has finished the item."""
    from chaos.group import follower_of

    fleet = running.fleet
    job = running.load.submit([prompt(running.rng, steps=(_STEPS, _STEPS), width=_SIDE, height=_SIDE)])
    slot = running.slot_of(job, timeout_s=_FINISH_S)
    leader = fleet.pid(slot)
    assert leader is not None
    follower = follower_of(leader)
    fleet.history.add(name, target=f"follower of {slot}", target_pid=follower)
    began = time.monotonic()
    os.kill(follower, number)
    running.time_until(lambda: not is_alive(leader), _FINISH_S, what=f"the end of the slot after {name}")
    running.demand_within(f"{name} to the end of the slot s", time.monotonic() - began, fleet.plan.stall_s + 5)
    running.time_until(lambda: not is_alive(follower), _GUARD_S, what=f"the end of the follower after {name}")
    running.time_until(lambda: running.item(job).state is State.SUCCEEDED, _FINISH_S, what=f"the image after {name}")
    item = running.item(job)
    running.demand(f"a second attempt after {name}", (item.attempt, item.fence) == (2, 2), item)
