"""Many adapters in turn, all queued at once: the case in which first in, first out swaps for each image."""

from __future__ import annotations

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.first_in_first_out import run_first_in_first_out
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import H100
from benchmarks.scheduling.simulation import Simulation
from benchmarks.scheduling.traffic import interleave
from shared.ledger.connection import Client
from shared.settings import QueueSettings


def run_interleaved(client: Client, seed: int, *, items: int = 400, adapters: int = 16, slots: int = 8) -> Outcome:
    """Interleave adapters in a queue that arrives at once."""
    settings = QueueSettings()
    arrivals = interleave(items, adapters=adapters)
    simulation = Simulation(client, settings)
    simulation.add_slots(slots, H100)
    simulation.plan(arrivals)

    history = simulation.run()
    reference = run_first_in_first_out(arrivals, slots=slots, times=H100)

    wait_s, reference_s = percentile(history.waits_s(), 99), percentile(reference.waits_s(), 99)
    return judge(
        "interleaved",
        simulation,
        {
            "slots": slots,
            "swaps first in, first out": reference.swaps,
            "p99 wait s first in, first out": reference_s,
            "end s first in, first out": reference.end_s,
        },
        [
            Bar("swaps, of those first in, first out", history.swaps / reference.swaps, at_most=0.2),
            Bar("p99 wait, of that first in, first out", wait_s / reference_s, at_most=1.2),
            Bar("longest wait, of the wait bound", max(history.waits_s()) / settings.wait_bound_s, at_most=1.0),
        ],
    )
