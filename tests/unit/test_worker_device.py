"""Which device a worker takes, on a host without CUDA."""

import threading

import pytest
import torch

from shared.errors import CheckpointError
from worker.device import device_id, pick_device, probe

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


def test_a_working_device_has_nothing_wrong():
    assert probe(torch.device("cpu")) is None


def test_a_device_that_does_not_answer_is_wrong(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr("worker.device._ask", lambda device: never.wait(30) and "")

    assert probe(torch.device("cpu"), timeout_s=0.05) == "it did not answer"
    never.set()


def test_a_device_that_raises_or_adds_wrongly_is_wrong(monkeypatch):
    def poisoned(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch, "arange", poisoned)
    assert probe(torch.device("cpu")) == "CUDA error: an illegal memory access was encountered"

    monkeypatch.setattr(torch, "arange", lambda *_, **__: torch.ones(256))
    assert probe(torch.device("cpu")) == "it added 0 to 255 up to 256"


def test_a_device_without_memory_is_not_a_broken_one(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 MiB")

    monkeypatch.setattr(torch, "arange", full)

    assert probe(torch.device("cpu")) is None
