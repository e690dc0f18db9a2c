"""Pick the device of this process."""

from __future__ import annotations

import torch

from shared.errors import CheckpointError


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `cuda`, `cuda:N` or `cpu`.

    Raises:
        CheckpointError: a CUDA device was asked for by name and there is none.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {name!r}: this process sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
