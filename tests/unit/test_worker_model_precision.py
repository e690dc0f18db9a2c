"""What each precision can do, and what the pools of items promise about the workers of each engine."""

import pytest

from shared.job import ENGINE_FEATURES
from worker.model.precision import PRECISIONS


@pytest.mark.parametrize("policy", PRECISIONS.values(), ids=PRECISIONS)
def test_every_worker_with_an_engine_can_do_what_its_plain_pool_requires(policy):
    for engine in policy.engines(has_toolkit=True):
        assert ENGINE_FEATURES[engine] <= set(policy.features)
        # An explicit `live` is refused for `fast` at the door, so every other worker must run adapters unmerged.
        assert policy.can_run_unmerged or engine == "fast"


def test_only_qfloat8_cannot_merge():
    assert {name for name, policy in PRECISIONS.items() if "merged" not in policy.features} == {"qfloat8"}
