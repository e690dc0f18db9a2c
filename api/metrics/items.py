"""The items that wait and run, by model, engine and tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from shared.catalog import MODELS, POOLS
from shared.job import ENGINES, FEATURES, State, pools
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import Ledger
from shared.ledger.backlog import PoolLoad
from shared.ledger.usage_rows import OTHER

# Tenants with a series of their own, of each model, engine and state: those with the most items.
_MOST_TENANTS: Final = 200


def collect_items(ledger: Ledger) -> Iterator[Metric]:
    """Yield `flux2_items`, and `flux2_items_queued`, its part without tenants."""
    loads = ledger.backlog.read(POOLS)
    items = GaugeMetricFamily(
        "flux2_items",
        "Images that wait for a worker (`queued`) or run (`running`).",
        labels=["state", "model", "engine", "tenant"],
    )
    waiting = GaugeMetricFamily("flux2_items_queued", "Images that wait for a worker.", labels=["model", "engine"])
    for model, engine in product(MODELS, ENGINES):
        own = [loads[name] for name in pools(model, [engine], FEATURES)]
        for state, counts in _by_state(own).items():
            for tenant, count in _limited(counts).items():
                items.add_metric([state, model, engine, tenant], count)
        waiting.add_metric([model, engine], sum(sum(load.queued.values()) for load in own))
    yield from (items, waiting)


def _by_state(loads: list[PoolLoad]) -> dict[State, Counter[str]]:
    queued, running = Counter[str](), Counter[str]()
    for load in loads:
        queued.update(load.queued)
        running.update(load.running)
    return {State.QUEUED: queued, State.RUNNING: running}


def _limited(counts: Counter[str]) -> Mapping[str, int]:
    """Return the counts of the tenants with the most items, and the sum of all others as that of `other`."""
    # The default tenant always has a series, so sums exist: an autoscaler can tell an empty queue from a lost one.
    limited = {DEFAULT_TENANT: counts[DEFAULT_TENANT], **dict(counts.most_common(_MOST_TENANTS))}
    rest = counts.total() - sum(limited.values())
    return {**limited, OTHER: limited.get(OTHER, 0) + rest} if rest else limited
