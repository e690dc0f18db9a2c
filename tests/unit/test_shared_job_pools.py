"""The pools of items and of workers: an item waits where every worker that can run it claims, and no other does."""

import pytest

from shared.catalog import MODELS, POOLS
from shared.job import ENGINE_FEATURES, ENGINES, FEATURES, AdapterRef, pools

REF = AdapterRef(path="a.safetensors", sha256="aa", size_bytes=1, multiplier=1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "flux2"),
        ({"engine": "fast"}, "flux2+fast"),
        ({"adapters": (REF,)}, "flux2"),
        ({"adapters": (REF,), "adapter_mode": "live"}, "flux2"),
        ({"adapters": (REF,), "adapter_mode": "merged"}, "flux2+merged"),
        # Nothing is merged without an adapter.
        ({"adapter_mode": "merged"}, "flux2"),
        # Every worker with these engines can merge, so workers of earlier versions claim these items too.
        ({"adapters": (REF,), "adapter_mode": "merged", "engine": "ai-toolkit"}, "flux2+ai-toolkit"),
        ({"adapters": (REF,), "adapter_mode": "merged", "engine": "fast"}, "flux2+fast"),
    ],
)
def test_an_item_waits_in_the_pool_of_what_it_requires(item, changes, expected):
    assert item(**changes).pool == expected


def test_a_worker_claims_from_the_pools_of_all_that_it_can_do():
    assert pools("flux2", ["exact"], []) == ("flux2",)
    assert pools("flux2", ["exact", "ai-toolkit"], ["merged"]) == ("flux2", "flux2+merged", "flux2+ai-toolkit")


def test_the_caretaker_looks_at_every_pool_that_an_item_can_have():
    assert set(POOLS) == {name for model in MODELS for engine in ENGINES for name in pools(model, [engine], FEATURES)}
    assert {"flux2", "flux2+merged", "flux2+ai-toolkit", "flux2+fast"} <= set(POOLS)
    assert len(set(POOLS)) == len(POOLS) == 4 * len(MODELS)


def test_each_engine_states_what_all_its_workers_can_do():
    assert set(ENGINE_FEATURES) == set(ENGINES)
