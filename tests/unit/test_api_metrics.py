"""The figures of GET /metrics, collected from counts that a test gives."""

from types import SimpleNamespace

from api.metrics.items import collect_items
from shared.catalog import POOLS
from shared.ledger.backlog import PoolLoad


def ledger_with(**loads):
    """Return the part of a ledger that counts items, with these loads by pool."""
    empty = PoolLoad({}, {})
    return SimpleNamespace(backlog=SimpleNamespace(read=lambda pools: {**dict.fromkeys(POOLS, empty), **loads}))


def queued_of_flux2(ledger):
    items, _ = collect_items(ledger)
    wanted = {"state": "queued", "model": "flux2", "engine": "exact"}
    return {
        sample.labels["tenant"]: sample.value for sample in items.samples if wanted.items() <= sample.labels.items()
    }


def test_tenants_beyond_the_two_hundred_with_the_most_items_count_together():
    large = {f"large-{number}": 2 for number in range(5)}
    small = {f"small-{number}": 1 for number in range(198)}

    queued = queued_of_flux2(ledger_with(flux2=PoolLoad({**small, **large}, {})))

    # 200 tenants, the sum of the three others, and the tenant that always has a series.
    assert len(queued) == 202
    assert (queued["other"], sum(queued.values())) == (3, 208)
    assert all(queued[name] == 2 for name in large)


def test_a_tenant_that_is_called_other_keeps_its_items():
    large = {f"large-{number}": 2 for number in range(199)}

    queued = queued_of_flux2(ledger_with(flux2=PoolLoad({**large, "other": 5, "small": 1, "tiny": 1}, {})))

    assert queued["other"] == 7
