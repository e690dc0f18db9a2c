"""A worker picks its device by name, on a host without CUDA too, and probes it."""

import threading
from types import SimpleNamespace

import pytest
import torch

from shared.errors import CheckpointError
from worker.device import device_id, memory_bytes, pick_device, pick_devices, probe

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this host has CUDA")


@without_cuda
@pytest.mark.parametrize("name", ["auto", "auto:3", "cpu"])
def test_without_cuda_every_automatic_choice_is_the_cpu(name):
    assert pick_device(name) == torch.device("cpu")
    assert device_id(pick_device(name)) == "cpu"


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_missing_cuda_device_is_an_error(name):
    with pytest.raises(CheckpointError, match="this process sees 0 CUDA devices"):
        pick_device(name)


def test_a_slot_has_the_devices_that_its_setting_lists(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    assert pick_devices("cpu") == [torch.device("cpu")]
    assert pick_devices("cpu,cpu") == [torch.device("cpu")] * 2
    assert pick_devices("cuda:2, cuda:0") == [torch.device("cuda", 2), torch.device("cuda", 0)]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("cpu,cpu,cpu", "a slot has 1, 2, 4 or 8 devices, not 3"),
        ("cuda:0,cpu", "must be of one kind"),
        ("cuda:1,cuda:1", "names a GPU twice"),
        ("cpu,", "unknown device ''"),
    ],
)
def test_other_lists_of_devices_are_refused(names, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    with pytest.raises(CheckpointError, match=reason):
        pick_devices(names)


def test_a_gpu_reports_its_whole_memory_and_a_cpu_none(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=85_029_158_912)
    )

    assert memory_bytes(torch.device("cuda", 0)) == 85_029_158_912
    assert memory_bytes(torch.device("cpu")) == 0


def test_the_probe_finds_nothing_wrong_with_a_working_device():
    assert probe(torch.device("cpu")) is None


def test_the_probe_gives_up_on_a_device_that_does_not_answer(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr("worker.device._calculate", lambda device: never.wait(30) and "")

    assert probe(torch.device("cpu"), timeout_s=0.05) == "it did not answer"
    never.set()


def test_the_probe_reports_a_device_that_raises_or_computes_wrongly(monkeypatch):
    def poisoned(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch, "arange", poisoned)
    assert probe(torch.device("cpu")) == "CUDA error: an illegal memory access was encountered"

    monkeypatch.setattr(torch, "arange", lambda *_, **__: torch.ones(256))
    assert probe(torch.device("cpu")) == "it computed 256 as the sum of 0 to 255"


def test_running_out_of_memory_is_no_fault(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 MiB")

    monkeypatch.setattr(torch, "arange", full)

    assert probe(torch.device("cpu")) is None
