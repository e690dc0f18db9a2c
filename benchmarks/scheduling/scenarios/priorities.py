"""Urgent items that arrive while a queue of others is worked off."""

from __future__ import annotations

import random

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import KLEIN
from benchmarks.scheduling.simulation import Arrival, Simulation
from benchmarks.scheduling.traffic import arrival_times_s, interleave, make_job, make_spec
from shared.ledger.connection import Client
from shared.settings import QueueSettings

_URGENT = 0


def run_priorities(client: Client, seed: int, *, items: int = 400, urgent: int = 40, slots: int = 4) -> Outcome:
    """Queue items at once, and let urgent ones with adapters of their own arrive until they are done."""
    chance = random.Random(seed)
    item_s = KLEIN.stages("", make_spec(0, adapter=0), swap="begun", is_prepared=True).render_s
    every_s = items * item_s / slots / urgent
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(slots, KLEIN)
    simulation.plan(interleave(items, adapters=8))
    simulation.plan(
        [
            Arrival(at_s, [make_job(f"urgent-{n}", [make_spec(n, adapter=100 + n % 4)], priority=_URGENT)])
            for n, at_s in enumerate(arrival_times_s(chance, urgent, every_s=every_s))
        ]
    )

    history = simulation.run()

    urgent_s = percentile(history.waits_s(only=lambda item: item.priority == _URGENT), 99)
    return judge(
        "priorities",
        simulation,
        {"slots": slots, "seconds of an item": item_s, "p99 wait s of urgent items": urgent_s},
        [Bar("p99 wait of urgent items, in items", urgent_s / item_s, at_most=1.0)],
    )
