"""Two slots that render in step: both look for their next adapter at the same moment."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.first_in_first_out import run_first_in_first_out
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import KLEIN
from benchmarks.scheduling.simulation import Simulation
from benchmarks.scheduling.traffic import interleave
from shared.ledger.connection import Client
from shared.settings import QueueSettings

# As of benchmarks/fleet.py, but no slot is faster than the other.
_TIMES = replace(KLEIN, spread=0.0)


def run_lockstep(client: Client, seed: int, *, items: int = 32, adapters: int = 8, slots: int = 2) -> Outcome:
    """Run the images of benchmarks/fleet.py on two slots that take exactly as long as each other."""
    arrivals = interleave(items, adapters=adapters)
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(slots, _TIMES)
    simulation.plan(arrivals)

    history = simulation.run()

    reference = run_first_in_first_out(arrivals, slots=slots, times=_TIMES)
    return judge(
        "lockstep",
        simulation,
        {"slots": slots, "adapters": adapters, "swaps first in, first out": reference.swaps},
        [Bar("swaps for each adapter", history.swaps / adapters, at_most=1.25)],
    )
