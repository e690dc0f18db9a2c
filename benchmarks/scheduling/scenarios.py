"""The scenarios: each one runs some jobs on a simulated fleet and judges what happened."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.first_in_first_out import run_first_in_first_out
from benchmarks.scheduling.forecasts import ForecastRecorder
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.service_times import H100
from benchmarks.scheduling.simulation import Simulation
from benchmarks.scheduling.traffic import interleave, mix, spread_out
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
    return Outcome(
        "interleaved",
        {
            "items": items,
            "slots": slots,
            "swaps": history.swaps,
            "swaps first in, first out": reference.swaps,
            "p99 wait s": wait_s,
            "p99 wait s first in, first out": reference_s,
            "end s": history.end_s,
            "end s first in, first out": reference.end_s,
        },
        [
            Bar("swaps, of those first in, first out", history.swaps / reference.swaps, at_most=0.2),
            Bar("p99 wait, of that first in, first out", wait_s / reference_s, at_most=1.2),
            Bar("longest wait, of the wait bound", max(history.waits_s()) / settings.wait_bound_s, at_most=1.0),
        ],
    )


def run_mixed(client: Client, seed: int, *, jobs: int = 250, slots: int = 8, load: float = 0.9) -> Outcome:
    """Mix sizes, steps, adapters and tenants in jobs that arrive over hours, and compare forecasts with the truth."""
    chance = random.Random(seed)
    arrivals = spread_out(chance, mix(chance, jobs=jobs, tenants=5, adapters=24), slots=slots, times=H100, load=load)
    recorder = ForecastRecorder(every_s=30, jobs=2, seed=seed)
    simulation = Simulation(client, QueueSettings(), observers=[recorder])
    simulation.add_slots(slots, H100)
    simulation.plan(arrivals)

    history = simulation.run()

    forecasts = recorder.forecasts(history)
    errors = [forecast.error for forecast in forecasts if forecast.error is not None]
    return Outcome(
        "mixed",
        {
            "jobs": jobs,
            "items": len(history.items),
            "slots": slots,
            "swaps": history.swaps,
            "p99 wait s": percentile(history.waits_s(), 99),
            "end s": history.end_s,
            "forecasts": len(forecasts),
            "forecasts with an estimate": len(errors),
            "median error of eta": statistics.median(errors),
        },
        [],
    )


#: Each runs on an emptied Redis, with a seed for what is random.
SCENARIOS: Mapping[str, Callable[[Client, int], Outcome]] = MappingProxyType(
    {"interleaved": run_interleaved, "mixed": run_mixed}
)
