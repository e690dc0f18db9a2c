"""Measure and limit a GPU's memory: how much is free, and how much this process may use."""

from __future__ import annotations

import time

import torch

_GB = 1_000_000_000
_SETTLE_TIMEOUT_S = 10.0
_POLL_S = 0.2


def limit_memory(device: torch.device, *, limit_gb: float | None) -> None:
    """Make torch refuse allocations of this process beyond `limit_gb`; no limit for None or on the CPU."""
    if device.type != "cuda" or limit_gb is None:
        return
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, int(limit_gb * _GB) / total), device)


def wait_for_stable_memory(device: torch.device) -> None:
    """Wait, 10 seconds at most, until the device's free memory stays the same."""
    if device.type != "cuda":
        return
    # A process that has just ended frees its memory over some hundred milliseconds.
    free, _ = torch.cuda.mem_get_info(device)
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        before, (free, _) = free, torch.cuda.mem_get_info(device)
        if free == before:
            return


def free_memory_bytes(device: torch.device, *, limit_gb: float | None) -> int | None:
    """Return the device memory that a model may take now, up to `limit_gb`; None on the CPU."""
    if device.type != "cuda":
        return None
    # The driver's count: unlike torch's, it includes the memory of other processes.
    free, _ = torch.cuda.mem_get_info(device)
    return free if limit_gb is None else min(free, int(limit_gb * _GB))
