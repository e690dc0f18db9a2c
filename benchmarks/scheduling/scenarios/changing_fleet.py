"""A fleet that grows, loses slots as in a power cut, drains others, and grows again."""

from __future__ import annotations

from functools import partial

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.judgment import judge
from benchmarks.scheduling.service_times import H100
from benchmarks.scheduling.simulation import Simulation
from benchmarks.scheduling.traffic import interleave, make_spec
from shared.ledger import keys
from shared.ledger.connection import Client
from shared.settings import QueueSettings

_JOIN_S, _KILL_S, _DRAIN_S, _REJOIN_S = 60.0, 150.0, 200.0, 260.0
_JOINED, _KILLED, _DRAINED, _REJOINED = 6, 2, 3, 4


def run_changing_fleet(client: Client, seed: int, *, items: int = 240, adapters: int = 8) -> Outcome:
    """Change a fleet of two slots to eight, to six, to three and to seven while it works."""
    simulation = Simulation(client, QueueSettings())
    simulation.add_slots(2, H100)
    for number in range(_JOINED):
        simulation.add_slot(f"joined-{number}", H100, at_s=_JOIN_S)
    for number in range(_KILLED):
        simulation.timeline.after(_KILL_S, partial(simulation.kill, f"joined-{number}"))
    for number in range(_KILLED, _KILLED + _DRAINED):
        simulation.timeline.after(_DRAIN_S, partial(simulation.drain, f"joined-{number}"))
    for number in range(_REJOINED):
        simulation.add_slot(f"rejoined-{number}", H100, at_s=_REJOIN_S)
    simulation.plan(interleave(items, adapters=adapters))

    history = simulation.run()

    item_s = H100.stages("", make_spec(0, adapter=0), swap="none", is_prepared=True).render_s
    ideal_s = _ideal_end_s(items * item_s)
    lost = sum(item.starts - 1 for item in history.items)
    live = {slot.name for slot in simulation.ledger.workers.live_slots()}
    return judge(
        "changing-fleet",
        simulation,
        {
            "starts of items whose slot died": lost,
            "live slots at the end": len(live),
            "end s without any loss": ideal_s,
        },
        [
            # Each slot that dies held one item, or two if it was storing another one.
            Bar("starts of items whose slot died", lost, at_least=_KILLED, at_most=2 * _KILLED),
            Bar("end, of that without swaps and losses", history.end_s / ideal_s, at_most=1.15),
            Bar("dead slots that count as warm", len(set(client.hkeys(f"{keys.PREFIX}warm")) - live), at_most=0),
        ],
    )


def _ideal_end_s(work_s: float) -> float:
    """Return when the fleet has done this much work if it swaps nothing and dying slots lose nothing."""
    changes = [(0.0, 2), (_JOIN_S, _JOINED), (_KILL_S, -_KILLED), (_DRAIN_S, -_DRAINED), (_REJOIN_S, _REJOINED)]
    slots, since_s = 0, 0.0
    for at_s, change in changes:
        done_s = slots * (at_s - since_s)
        if done_s >= work_s:
            break
        work_s -= done_s
        slots, since_s = slots + change, at_s
    return since_s + work_s / slots
