"""Jobs of all kinds that arrive over an hour, and what the ledger forecasts for them."""

from __future__ import annotations

import random
import statistics

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.first_in_first_out import run_first_in_first_out
from benchmarks.scheduling.forecasts import ForecastRecorder
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import H100
from benchmarks.scheduling.simulation import Simulation
from benchmarks.scheduling.traffic import mix, spread_out
from shared.ledger.connection import Client
from shared.settings import QueueSettings


def run_mixed(client: Client, seed: int, *, jobs: int = 250, slots: int = 8, load: float = 0.9) -> Outcome:
    """Mix sizes, steps, adapters and tenants in jobs that arrive over hours, and compare forecasts with the truth."""
    chance = random.Random(seed)
    arrivals = spread_out(chance, mix(chance, jobs=jobs, tenants=5, adapters=24), slots=slots, times=H100, load=load)
    recorder = ForecastRecorder(every_s=30, jobs=2, seed=seed)
    simulation = Simulation(client, QueueSettings(), observers=[recorder])
    simulation.add_slots(slots, H100)
    simulation.plan(arrivals)

    history = simulation.run()

    reference = run_first_in_first_out(arrivals, slots=slots, times=H100)
    forecasts = recorder.forecasts(history)
    errors = [forecast.error for forecast in forecasts if forecast.error is not None]
    in_range = sum(forecast.is_in_range for forecast in forecasts)
    return judge(
        "mixed",
        simulation,
        {
            "jobs": jobs,
            "slots": slots,
            "swaps first in, first out": reference.swaps,
            "p99 wait s first in, first out": percentile(reference.waits_s(), 99),
            "forecasts": len(forecasts),
            "forecasts with an estimate": len(errors),
        },
        [
            Bar("swaps, of those first in, first out", history.swaps / reference.swaps, at_most=1.0),
            Bar("median error of eta", statistics.median(errors), at_most=0.25),
            Bar("ends in the range of eta, of all", in_range / len(errors), at_least=0.7),
        ],
    )
