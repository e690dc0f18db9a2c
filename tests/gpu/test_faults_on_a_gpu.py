"""What a CUDA fault leaves of a process, in processes of their own: a poisoned one could run no other test."""

import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROBE = """
import torch
from worker.device import probe
device = torch.device("cuda:0")
assert probe(device) is None
{harm}
print("found:", probe(device, timeout_s=5))
import os; os._exit(0)
"""
ASSERT = """
try:
    torch.zeros(4, device=device)[torch.tensor([99], device=device)].sum().item()
except RuntimeError:
    pass
"""
HANG = "torch.cuda._sleep(2**62)"
FULL = """
try:
    torch.empty(2**50, dtype=torch.uint8, device=device)
except torch.OutOfMemoryError:
    pass
"""


def found(harm):
    command = [sys.executable, "-c", PROBE.format(harm=harm)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("found: ")[2].strip()


def test_a_device_assert_is_found_by_the_probe():
    assert "CUDA error" in found(ASSERT)


def test_a_kernel_that_hangs_is_found_by_the_probe():
    assert found(HANG) == "it did not answer"


def test_running_out_of_memory_is_no_fault():
    assert found(FULL) == "None"
