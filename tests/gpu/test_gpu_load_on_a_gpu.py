"""The load of a real GPU: its memory, and the utilization that the driver states."""

import pytest
import torch

from worker.gpu_load import gpu_load_reader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_load_of_a_gpu_is_read_while_it_works():
    device = torch.device("cuda", 0)
    read = gpu_load_reader(device)
    before = read()

    block = torch.empty(2**30, dtype=torch.uint8, device=device)
    after = read()

    assert before is not None
    assert after is not None
    assert after.memory_used_bytes - before.memory_used_bytes >= block.numel()
    assert after.memory_used_bytes < after.memory_bytes == before.memory_bytes
    # The driver of a container may lack its library.
    assert after.utilization is None or 0 <= after.utilization <= 1
