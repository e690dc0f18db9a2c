"""Two tenants, one with many times the load of the other."""

from __future__ import annotations

import random

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import KLEIN
from benchmarks.scheduling.simulation import Arrival, Simulation
from benchmarks.scheduling.traffic import arrival_times_s, make_job, make_spec
from shared.ledger.connection import Client
from shared.settings import QueueSettings

_TIMES_THE_LOAD = 50
_ADAPTERS = 8


def run_tenants(client: Client, seed: int, *, items: int = 24, slots: int = 8) -> Outcome:
    """Queue the large tenant's items at once; the small tenant's arrive while they run."""
    chance = random.Random(seed)
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(slots, KLEIN)
    large = items * _TIMES_THE_LOAD
    item_s = KLEIN.stages("", make_spec(0, adapter=0), swap="begun", is_prepared=True).render_s
    simulation.plan(
        [
            Arrival(
                0.0,
                [make_job(f"large-{n}", [make_spec(n, adapter=n % _ADAPTERS)], tenant="large") for n in range(large)],
            ),
            *(
                Arrival(at_s, [make_job(f"small-{n}", [make_spec(n, adapter=100 + n % _ADAPTERS)], tenant="small")])
                for n, at_s in enumerate(arrival_times_s(chance, items, every_s=large * item_s / slots / items))
            ),
        ]
    )

    history = simulation.run()

    small_s = percentile(history.waits_s(only=lambda item: item.tenant == "small"), 99)
    return judge(
        "tenants",
        simulation,
        {
            "slots": slots,
            "seconds of an item": item_s,
            "p99 wait s of the small tenant": small_s,
            "p99 wait s of the large tenant": percentile(history.waits_s(only=lambda item: item.tenant == "large"), 99),
        },
        [Bar("p99 wait of the small tenant, in items", small_s / item_s, at_most=2.0)],
    )
