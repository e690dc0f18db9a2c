"""The pools of items and of workers: an item waits where every worker that can run it claims, and no other does."""

import pytest

from shared.catalog import MODELS, POOLS
from shared.job import (
    ENGINE_FEATURES,
    ENGINES,
    FEATURES,
    AdapterRef,
    ReferenceRef,
    audit_kind,
    is_large,
    large_pool,
    memory_gib,
    pools,
    wake_name,
)
from shared.ledger.acceptance import Submission

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


def test_a_job_with_one_reference_image_waits_for_a_worker_that_renders_them(item):
    plain, edit = item(), item(references=(ReferenceRef(slot=3, sha256="ab" * 32),))

    assert plain.pool == "flux2"
    assert edit.pool == "flux2+references"
    assert Submission("job", [plain, edit], record={}).pool == "flux2+references"
    merged = {"adapters": (REF,), "adapter_mode": "merged"}
    job = Submission("job", [item(**merged), item(**merged, references=edit.references)], record={})
    assert job.pool == "flux2+merged+references"
    assert job.pool in pools("flux2", ["exact"], FEATURES)
    assert audit_kind(large_pool(job.pool)) == "references"
    assert audit_kind(large_pool(plain.pool)) == "large"
    assert audit_kind(plain.pool) == "plain"


def test_a_job_with_noise_levels_waits_for_a_worker_that_takes_them(item):
    plain, few = item(), item(sigmas=(1.0, 0.5))
    edit = item(references=(ReferenceRef(slot=1, sha256="ab" * 32),))

    assert few.pool == "flux2+sigmas"
    assert Submission("job", [plain, few], record={}).pool == "flux2+sigmas"
    # Each worker that takes noise levels also renders references.
    assert Submission("job", [edit, few], record={}).pool == "flux2+sigmas"
    assert pools("flux2", ["exact"], ["references", "sigmas"]) == ("flux2", "flux2+references", "flux2+sigmas")
    assert large_pool(few.pool) in pools("flux2", ["exact"], FEATURES)
    assert audit_kind(large_pool(few.pool)) == "sigmas"
    # Those of the previous version.
    assert few.pool not in pools("flux2", ["exact", "ai-toolkit", "fast"], ["merged", "references", "large"])


def test_a_worker_that_reports_its_memory_also_claims_what_did_not_fit_elsewhere():
    assert pools("flux2", ["exact"], ["large"]) == ("flux2", "flux2+large")
    assert pools("flux2", ["exact", "ai-toolkit"], ["merged", "large"]) == (
        "flux2",
        "flux2+merged",
        "flux2+large",
        "flux2+merged+large",
        "flux2+ai-toolkit",
        "flux2+ai-toolkit+large",
    )


@pytest.mark.parametrize("name", [name for name in POOLS if not is_large(name)])
def test_each_pool_has_one_for_the_items_that_did_not_fit(name):
    assert large_pool(name) in POOLS
    assert is_large(large_pool(name))
    # An item that does not fit on the next device either stays there.
    assert large_pool(large_pool(name)) == large_pool(name)


def test_no_request_asks_for_the_pool_of_large_items(item):
    changes = [{}, {"adapters": (REF,), "adapter_mode": "merged"}, {"engine": "fast"}, {"engine": "ai-toolkit"}]

    assert not any(is_large(item(**change).pool) for change in changes)


def test_the_wake_up_for_a_large_item_goes_to_the_slots_of_one_size():
    # Two H100, one with an older driver, and an RTX 4090.
    sizes = [memory_gib(size) for size in (85_029_158_912, 85_017_624_576, 25_386_352_640)]

    assert [wake_name("flux2+large", size) for size in sizes] == ["flux2+large@79", "flux2+large@79", "flux2+large@24"]
    assert [wake_name("flux2", size) for size in sizes] == ["flux2"] * 3


def test_the_caretaker_looks_at_every_pool_that_an_item_can_have():
    assert set(POOLS) == {name for model in MODELS for engine in ENGINES for name in pools(model, [engine], FEATURES)}
    assert {"flux2", "flux2+merged", "flux2+ai-toolkit", "flux2+fast"} <= set(POOLS)
    assert len(set(POOLS)) == len(POOLS) == 24 * len(MODELS)


def test_each_engine_states_what_all_its_workers_can_do():
    assert set(ENGINE_FEATURES) == set(ENGINES)
