"""Compute checksums that show whether a weight has changed."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.kernels.toolchain import triton_unavailable_reason

_WORDS = (torch.int64, torch.int32, torch.int16, torch.int8)


@torch.no_grad()
def checksum(weight: Tensor) -> Tensor:
    """Sum a matrix's bits as integers into one int64 on its device; row i is multiplied by 2 i + 1.

    Any change of a single entry changes the sum.
    """
    # Integers give the same sum in any order, modulo 2**64, and an odd factor cannot cancel a single changed entry.
    # On one core of a CPU this reads 12 GB/s; torch.equal with a copy reads 1.3 GB/s of each.
    row_bytes = weight.shape[1] * weight.element_size()
    # The widest integers that divide a row: fewer additions for the same bytes.
    words = weight.view(next(dtype for dtype in _WORDS if row_bytes % dtype.itemsize == 0))
    if words.is_cuda and words.dtype == torch.int64 and triton_unavailable_reason() is None:
        from worker.kernels.checksum_kernel import launch

        total = torch.zeros((), dtype=torch.int64, device=weight.device)
        with torch.cuda.device(weight.device):
            launch(words, total)
        return total
    numbers = torch.arange(1, 2 * len(words), 2, device=weight.device)
    return (words.sum(1, dtype=torch.int64) * numbers).sum()
