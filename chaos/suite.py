"""The list of scenarios, in the order in which they run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from chaos.checker import Violation
from chaos.mutate import Mutation
from chaos.scenarios import deaths, redis_trouble, stalls, storage_and_cancels
from chaos.scenarios.control import control
from chaos.scenarios.full_disk import full_disk
from chaos.scenarios.key_storm import key_storm
from chaos.scenarios.split_slot import split_slot
from chaos.scenarios.two_apis import two_apis
from chaos.stall_storm import stall_storm
from chaos.storm import storm
from chaos.trial import Lab, Outcome
from shared.errors import ServerFailed

_MODEL_TEST = Path(__file__).parents[1] / "tests/integration/test_ledger_model.py"


def run(lab: Lab, *, jobs: int, only: Sequence[str]) -> Iterator[Outcome]:
    """Run the scenarios named in `only`, or all."""
    for name, scenario in _scenarios(jobs).items():
        if not only or name in only:
            try:
                yield scenario(lab)
            except (TimeoutError, ServerFailed) as error:
                yield Outcome(name, "did not run", violations=[Violation(name, "the fleet", str(error))])


def _scenarios(jobs: int) -> dict[str, Callable[[Lab], Outcome]]:
    return {
        "storm": partial(storm, jobs=jobs),
        "storm of stalls": partial(stall_storm, rounds=3 if jobs >= 1000 else 1),
        "F2": redis_trouble.grace,
        "F2 frozen": stalls.frozen,
        "F3": partial(redis_trouble.stopped, down_s=60.0 if jobs >= 1000 else 15.0),
        "F5": deaths.lost_message,
        "F6": partial(storage_and_cancels.storage, budget_s=15.0 if jobs >= 1000 else 2.0),
        "F6 slow": storage_and_cancels.slow_storage,
        "F7": deaths.zombies,
        "F8": storage_and_cancels.cancels,
        "F9": deaths.rolling_restart,
        "F10": deaths.poison,
        "F11": partial(redis_trouble.black_hole, long_s=60.0 if jobs >= 1000 else 12.0),
        "F12": deaths.duplicates,
        "F13": redis_trouble.full,
        "F14": deaths.hung_kernel,
        "F15": _model,
        "F16": stalls.set_clock,
        "F17": stalls.cut,
        "F18": stalls.replica,
        "F19": full_disk,
        "F20": partial(two_apis, rounds=5 if jobs >= 1000 else 2),
        "F21": key_storm,
        "F22": split_slot,
        "control": control,
        "no fence": partial(deaths.zombies, mutation=Mutation.FENCE),
        "stale usage": partial(deaths.zombies, mutation=Mutation.COUNT_STALE),
        "lost usage": partial(deaths.zombies, mutation=Mutation.COUNT_FIRST),
        "no audit": partial(deaths.lost_message, mutation=Mutation.AUDIT),
        "no grace": partial(redis_trouble.grace, mutation=Mutation.GRACE),
        "no grace, F2 frozen": partial(stalls.frozen, mutation=Mutation.GRACE),
        "no grace, F16": partial(stalls.set_clock, mutation=Mutation.GRACE),
        "no audit, F17": partial(stalls.cut, mutation=Mutation.AUDIT),
        "no reconnect": partial(stalls.replica, mutation=Mutation.RECONNECT),
        "no idempotency": partial(two_apis, rounds=1, mutation=Mutation.IDEMPOTENCY),
        "no grace, storm of stalls": partial(stall_storm, mutation=Mutation.GRACE),
    }


def _model(lab: Lab) -> Outcome:
    """F15: the state machine over the ledger's scripts, which is also a test."""
    outcome = Outcome("F15", "random steps of two workers, reaper and client over the scripts")
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-s", f"--hypothesis-seed={lab.seed}", str(_MODEL_TEST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        outcome.violations.append(Violation("F15", _MODEL_TEST.name, done.stdout[-2000:]))
    if steps := re.search(r"steps: (\d+)", done.stdout):
        outcome.figures["steps"] = int(steps[1])
    outcome.wall_s = time.monotonic() - began
    return outcome
