"""The reference: slots that take the oldest item whatever adapters it has, with the same service times."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from benchmarks.scheduling.history import History
from benchmarks.scheduling.service_times import ServiceTimes, Swap
from benchmarks.scheduling.simulation import Arrival


def run_first_in_first_out(arrivals: Sequence[Arrival], *, slots: int, times: ServiceTimes) -> History:
    """Return what happens to the items of `arrivals`.

    Each item counts as prepared while the one before it rendered, as if each slot knew its next item: a real queue of
    this kind is slower.
    """
    history = History()
    for arrival in sorted(arrivals, key=lambda arrival: arrival.at_s):
        for job in arrival.jobs:
            history.accept(job, arrival.at_s)
    # The time from which each slot is free; the slot that has been free for longest takes the next item.
    free = [(0.0, slot) for slot in range(slots)]
    warm = ["base"] * slots
    for item in history.items:
        free_s, slot = heapq.heappop(free)
        begins_s = max(free_s, item.accepted_s)
        swap: Swap = "none" if warm[slot] == item.spec.adapter_key else "begun"
        stages = times.stages(item.item_id, item.spec, swap=swap, is_prepared=True)
        warm[slot] = item.spec.adapter_key
        item.start(begins_s, has_swap=swap != "none")
        heapq.heappush(free, (begins_s + stages.render_s, slot))
        history.end(item.item_id, begins_s + stages.render_s + stages.store_s)
    return history
