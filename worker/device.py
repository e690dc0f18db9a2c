"""Pick the device of this process."""

from __future__ import annotations

import torch

from shared.errors import CheckpointError


def device_id(device: torch.device) -> str:
    """Name a device so that it is the same one whatever CUDA_VISIBLE_DEVICES says: a GPU by its UUID."""
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else str(device)


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `auto:N` (the Nth CUDA device where there is CUDA), `cuda`, `cuda:N` or `cpu`.

    Raises:
        CheckpointError: a CUDA device was asked for by name and there is none.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        name = f"cuda:{number or 0}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {name!r}: this process sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
