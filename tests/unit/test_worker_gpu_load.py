"""A GPU is sampled in a thread of its own; heartbeats read the latest sample."""

import threading

import pytest

from shared.metrics.tally import Tally
from worker.gpu_load import GpuLoad, GpuLoadSampler

HALF_FULL = GpuLoad(memory_used_bytes=40, memory_bytes=80, utilization=0.97)


@pytest.fixture
def tally():
    return Tally()


def test_a_sample_is_reported_and_counted_as_parts_of_the_whole(tally):
    sampler = GpuLoadSampler(lambda: HALF_FULL, model="flux2", tally=tally)
    sampler.sample()

    assert sampler.report() == {"gpu_memory_used_bytes": "40", "gpu_utilization": "0.97"}
    assert tally.take() == {
        "gpu_memory_ratio|flux2|le=500000": 1,
        "gpu_memory_ratio|flux2|sum": 500_000,
        "gpu_utilization_ratio|flux2|le=980000": 1,
        "gpu_utilization_ratio|flux2|sum": 970_000,
    }


def test_a_load_that_becomes_unknown_replaces_the_one_before(tally):
    loads = iter([HALF_FULL, GpuLoad(8, 80, None), None])
    sampler = GpuLoadSampler(lambda: next(loads), model="flux2", tally=tally)
    sampler.sample()
    tally.take()

    sampler.sample()
    assert sampler.report() == {"gpu_memory_used_bytes": "8", "gpu_utilization": ""}
    assert tally.take() == {"gpu_memory_ratio|flux2|le=100000": 1, "gpu_memory_ratio|flux2|sum": 100_000}

    sampler.sample()
    assert sampler.report() == {"gpu_memory_used_bytes": "", "gpu_utilization": ""}
    assert tally.take() == {}


def test_a_device_that_hangs_delays_neither_a_report_nor_the_end(tally):
    asked, answer = threading.Event(), threading.Event()

    def hang():
        asked.set()
        assert answer.wait(10)

    with GpuLoadSampler(hang, model="flux2", period_s=0.01, join_s=0.01, tally=tally) as sampler:
        assert asked.wait(10)
        assert sampler.report() == {"gpu_memory_used_bytes": "", "gpu_utilization": ""}

    answer.set()
    sampler._thread.join(10)
    assert not sampler._thread.is_alive()
