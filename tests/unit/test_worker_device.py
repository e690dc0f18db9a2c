"""Which device a worker takes, on a host without CUDA."""

import pytest
import torch

from shared.errors import CheckpointError
from worker.device import device_id, pick_device

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this host has CUDA")


@without_cuda
@pytest.mark.parametrize("name", ["auto", "auto:3", "cpu"])
def test_without_cuda_every_automatic_choice_is_the_cpu(name):
    assert pick_device(name) == torch.device("cpu")
    assert device_id(pick_device(name)) == "cpu"


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_cuda_device_that_is_not_there_is_an_error(name):
    with pytest.raises(CheckpointError, match="this process sees 0 CUDA devices"):
        pick_device(name)
