"""Page-locked host memory: what a GPU copies from at 53 GB/s instead of 8; and threads and streams beside its work."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor


def device_thread_pool(device: torch.device, threads: int, name: str) -> ThreadPoolExecutor:
    """Return threads whose current device is this one: else a stream's end would open a context on the first GPU."""
    begin = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=begin)


def side_stream(device: torch.device) -> Any:
    """Return a stream for what goes on beside a step, on a GPU; else None."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def pinned_like(tensor: Tensor) -> Tensor:
    """Return uninitialised host memory for a copy of `tensor`, page-locked if that lies on a GPU."""
    empty = torch.empty_like(tensor, device="cpu")
    return pin(empty.zero_(), device=tensor.device) if tensor.is_cuda else empty


def pin(tensor: Tensor, *, device: torch.device) -> Tensor:
    """Lock a host tensor's pages for as long as it lives, and return it; touch them first.

    Pages that all cores have touched are locked in 0.12 s a GB on an H100's host. A plain copy took 0.8 s a GB, nearly
    all of it page faults, and torch's own locked memory 0.4 s with sizes rounded up to powers of two.
    """
    runtime = cuda_runtime()
    with torch.cuda.device(device):  # else a thread would open a context on the first GPU, which is another worker's
        torch.cuda.check_error(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    weakref.finalize(tensor, runtime.cudaHostUnregister, tensor.data_ptr()).atexit = False
    return tensor


def cuda_runtime() -> Any:
    """Return CUDA's runtime."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
