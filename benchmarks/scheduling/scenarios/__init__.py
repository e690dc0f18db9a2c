"""The scenarios: each one runs some jobs on a simulated fleet and judges what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.scheduling.bars import Outcome
from benchmarks.scheduling.scenarios.changing_fleet import run_changing_fleet
from benchmarks.scheduling.scenarios.interleaved import run_backlog, run_interleaved
from benchmarks.scheduling.scenarios.large_fleets import run_large_fleets
from benchmarks.scheduling.scenarios.lockstep import run_lockstep
from benchmarks.scheduling.scenarios.mixed import run_mixed
from benchmarks.scheduling.scenarios.priorities import run_priorities
from benchmarks.scheduling.scenarios.starvation import run_starvation
from benchmarks.scheduling.scenarios.tenants import run_tenants
from shared.ledger.connection import Client

#: Each runs on an emptied Redis, with a seed for what is random.
SCENARIOS: Mapping[str, Callable[[Client, int], Outcome]] = MappingProxyType(
    {
        "interleaved": run_interleaved,
        "backlog": run_backlog,
        "starvation": run_starvation,
        "tenants": run_tenants,
        "priorities": run_priorities,
        "changing-fleet": run_changing_fleet,
        "lockstep": run_lockstep,
        "mixed": run_mixed,
        "large-fleets": run_large_fleets,
    }
)
