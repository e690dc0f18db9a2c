"""The device of this process: which one it is, and whether it still works."""

from __future__ import annotations

import re
import threading

import torch

from shared.errors import CheckpointError

_DEVICES = re.compile(r"(auto|cuda)(:\d+)?|cpu")
_PROBE_S = 10.0


def device_id(device: torch.device) -> str:
    """Name a device so that it is the same one whatever CUDA_VISIBLE_DEVICES says: a GPU by its UUID."""
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else str(device)


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `auto:N` (the Nth CUDA device where there is CUDA), `cuda`, `cuda:N` or `cpu`.

    Raises:
        CheckpointError: it is none of these, or a CUDA device was asked for by name and there is none.
    """
    if not _DEVICES.fullmatch(name):
        raise CheckpointError(f"device {name!r} is none of auto, cuda, cuda:N and cpu")
    kind, _, number = name.partition(":")
    if kind == "auto":
        name = f"cuda:{number or 0}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {name!r}: this process sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def probe(device: torch.device, *, timeout_s: float = _PROBE_S) -> str | None:
    """Return what is wrong with a device, or None: errors such as an illegal access stay with a process for ever.

    In a thread of its own, since a poisoned device may never answer. Running out of memory is no fault.
    """
    found = ["it did not answer"]

    def ask() -> None:
        found[0] = _ask(device)

    thread = threading.Thread(target=ask, name="flux2-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return found[0] or None


def _ask(device: torch.device) -> str:
    try:
        total = torch.arange(256, device=device, dtype=torch.float32).sum().item()
    except torch.OutOfMemoryError:
        return ""
    except RuntimeError as error:  # torch's class of CUDA errors, AcceleratorError, is one
        return str(error).partition("\n")[0]
    return "" if total == 32_640 else f"it added 0 to 255 up to {total:g}"
