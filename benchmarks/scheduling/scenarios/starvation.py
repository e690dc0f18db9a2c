"""Two adapters that always have items queued, and others that need a swap each: who waits past the bound?"""

from __future__ import annotations

from itertools import count

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import H100
from benchmarks.scheduling.simulation import Arrival, Simulation
from benchmarks.scheduling.traffic import make_job, make_spec
from shared.ledger.connection import Client
from shared.settings import QueueSettings

_SLOTS, _HOT_QUEUED, _REFILL_S, _RARE_EVERY_S = 2, 8, 5.0, 60.0
_LOW_PRIORITY = 9


class _Refill:
    """Keeps items of each hot adapter in the queue, as a caller does who sends the next when one ends."""

    def __init__(self, *, until_s: float) -> None:
        self._until_s = until_s
        self._numbers = count()

    def attach(self, simulation: Simulation) -> None:
        """See `Observer`."""

        def refill() -> None:
            for adapter in range(_SLOTS):
                waiting = sum(
                    item.started_s is None and item.spec.adapters[0].path == f"{adapter}.safetensors"
                    for item in simulation.history.items
                )
                for _ in range(_HOT_QUEUED - waiting):
                    number = next(self._numbers)
                    simulation.accept([make_job(f"hot-{number}", [make_spec(number, adapter=adapter)])])
            if simulation.timeline.now_s() < self._until_s:
                simulation.timeline.after(_REFILL_S, refill)

        simulation.timeline.after(0.0, refill)


def run_starvation(client: Client, seed: int, *, rare: int = 20, wait_bound_s: float = 300.0) -> Outcome:
    """Keep as many hot adapters queued as there are slots, and add rare ones, half of them of the lowest priority."""
    settings = QueueSettings(wait_bound_s=wait_bound_s)
    simulation = Simulation(client, settings, observers=[_Refill(until_s=rare * _RARE_EVERY_S)])
    simulation.add_slots(_SLOTS, H100)
    simulation.plan(
        [
            Arrival(
                number * _RARE_EVERY_S,
                [
                    make_job(
                        f"rare-{number}",
                        [make_spec(number, adapter=100 + number)],
                        priority=_LOW_PRIORITY if number % 2 else 5,
                    )
                ],
            )
            for number in range(1, rare + 1)
        ]
    )

    history = simulation.run()

    item = history["rare-1:0"].spec
    item_s = H100.stages("", item, swap="whole", is_prepared=False).render_s
    beyond_s = max(history.waits_s()) - wait_bound_s
    return judge(
        "starvation",
        simulation,
        {"slots": _SLOTS, "wait bound s": wait_bound_s, "seconds of an item": item_s},
        [
            # Otherwise the scenario would not show what the bound does.
            Bar("claims of overdue items", simulation.ledger.totals().claims["overdue"], at_least=1),
            Bar("longest wait beyond the bound, in items", beyond_s / item_s, at_most=1.0),
        ],
    )
