"""Pick the device of this process, name it, and probe whether it still works."""

from __future__ import annotations

import queue
import re
import threading

import torch

from shared.errors import CheckpointError

_DEVICES = re.compile(r"(auto|cuda)(:\d+)?|cpu")
_PROBE_S = 10.0

#: Numbers of devices that can render an image together.
SLOT_SIZES = (1, 2, 4, 8)


def device_id(device: torch.device) -> str:
    """Return a name for the device that is unique on this host."""
    # A GPU's UUID, because its number depends on CUDA_VISIBLE_DEVICES.
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else str(device)


def memory_bytes(device: torch.device) -> int:
    """Return the memory of a GPU; 0 for a CPU, whose memory the host's processes share."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `auto:N` (the Nth CUDA device where there is CUDA), `cuda`, `cuda:N` or `cpu`.

    Raises:
        CheckpointError: the name is unknown, or names a CUDA device that this process cannot see.
    """
    if not _DEVICES.fullmatch(name):
        raise CheckpointError(f"unknown device {name!r}; use auto, auto:N, cuda, cuda:N or cpu")
    kind, _, number = name.partition(":")
    if kind == "auto":
        name = f"cuda:{number or 0}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise CheckpointError(f"no device {name!r}: this process sees {count} CUDA devices; check CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def pick_devices(names: str) -> list[torch.device]:
    """Resolve the devices of one slot, separated by commas; see `pick_device`. The first one leads.

    Raises:
        CheckpointError: see `pick_device`; or their number is not 1, 2, 4 or 8, a GPU occurs twice, or kinds are mixed.
    """
    devices = [pick_device(name.strip()) for name in names.split(",")]
    if len(devices) not in SLOT_SIZES:
        raise CheckpointError(f"device {names!r}: a slot has 1, 2, 4 or 8 devices, not {len(devices)}")
    if len({device.type for device in devices}) > 1:
        raise CheckpointError(f"device {names!r}: the devices of a slot must be of one kind")
    if devices[0].type == "cuda" and len(set(devices)) < len(devices):
        raise CheckpointError(f"device {names!r} names a GPU twice")
    return devices


def probe(device: torch.device, *, timeout_s: float = _PROBE_S) -> str | None:
    """Run a small calculation on a device; return a description of the fault, or None.

    A CUDA error such as an illegal access is sticky: every later call of the process fails.

    Args:
        timeout_s: a device that does not answer within this time is broken.
    """
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    # A broken device may never answer: the thread then stays until the process ends.
    thread = threading.Thread(target=lambda: answers.put(_calculate(device)), name="flux2-probe", daemon=True)
    thread.start()
    try:
        fault = answers.get(timeout=timeout_s)
    except queue.Empty:
        return "it did not answer"
    thread.join()
    return fault or None


def _calculate(device: torch.device) -> str:
    """Return a description of the fault, or an empty string."""
    try:
        total = torch.arange(256, device=device, dtype=torch.float32).sum().item()
    except torch.OutOfMemoryError:
        # A full device still works.
        return ""
    except RuntimeError as error:  # base class of torch.AcceleratorError, which CUDA errors are
        return str(error).partition("\n")[0]
    return "" if total == 32_640 else f"it computed {total:g} as the sum of 0 to 255"
