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
    """Interleave adapters in a queue that is done within the wait bound."""
    settings = QueueSettings()
    simulation, figures, bars = _run(client, settings, items=items, adapters=adapters, slots=slots)
    longest_s = max(simulation.history.waits_s())
    bars.append(Bar("longest wait, of the wait bound", longest_s / settings.wait_bound_s, at_most=1.0))
    return judge("interleaved", simulation, figures, bars)


def run_backlog(client: Client, seed: int, *, items: int = 400, adapters: int = 16, slots: int = 8) -> Outcome:
    """Do the same with a queue that takes ten times as long as the wait bound, so that nearly all items are overdue."""
    settings = QueueSettings(wait_bound_s=items * H100.step_s[1024 * 1024] * 25 / slots / 10)
    simulation, figures, bars = _run(client, settings, items=items, adapters=adapters, slots=slots)
    overdue = simulation.ledger.totals().claims["overdue"]
    bars.append(Bar("claims of overdue items, of all", overdue / items, at_least=0.8))
    return judge("backlog", simulation, figures, bars)


def _run(
    client: Client, settings: QueueSettings, *, items: int, adapters: int, slots: int
) -> tuple[Simulation, dict[str, float], list[Bar]]:
    arrivals = interleave(items, adapters=adapters)
    simulation = Simulation(client, settings)
    simulation.add_slots(slots, H100)
    simulation.plan(arrivals)

    history = simulation.run()
    reference = run_first_in_first_out(arrivals, slots=slots, times=H100)

    wait_s, reference_s = percentile(history.waits_s(), 99), percentile(reference.waits_s(), 99)
    figures = {
        "slots": slots,
        "swaps first in, first out": reference.swaps,
        "p99 wait s first in, first out": reference_s,
        "end s first in, first out": reference.end_s,
    }
    bars = [
        Bar("swaps, of those first in, first out", history.swaps / reference.swaps, at_most=0.2),
        Bar("p99 wait, of that first in, first out", wait_s / reference_s, at_most=1.2),
    ]
    return simulation, figures, bars
