"""Add a LoRA to a weight in one pass over it, on a GPU.

Each weight is read and written once, 4 bytes a value; torch's operations pass over it and over float32 values as large
as it about a dozen times, which takes 0.7 s for FLUX.2 [dev] on an H100. The bits are theirs: the products are added up
in the order of the rank, which is that of torch's float32 product, and what comes after is rounded operation by
operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.kernels.toolchain import triton_unavailable_reason

_ROWS, _COLUMNS, _RANK = 64, 64, 16
# FLUX.2's layers have 786,432 values and more. For smaller or odd ones torch takes kernels that add up in parts.
_LEAST = 500_000


def fits(weight: Tensor) -> bool:
    """Whether `add_low_rank` can be had, and gives a weight torch's bits."""
    rows, columns = weight.shape
    return (
        weight.is_cuda
        and triton_unavailable_reason() is None
        and rows % _ROWS == 0
        and columns % _COLUMNS == 0
        and weight.numel() >= _LEAST
    )


def add_low_rank(
    weight: Tensor, down: Tensor, up: Tensor, *, old: Tensor, multiplier: float, scale: float, broken: Tensor
) -> None:
    """Write ``old + up @ down * multiplier * scale`` to `weight`.

    Args:
        weight: (out, in), contiguous, on a GPU; one that `fits`.
        old: like it, or itself.
        down: (rank, in).
        up: (out, rank).
        broken: int32, one value on the GPU; becomes 1 if the sum is not finite everywhere.
    """
    rows, columns = weight.shape
    grid = (-(-rows // _ROWS) * -(-columns // _COLUMNS),)
    with torch.cuda.device(weight.device):
        _kernel()[grid](
            weight, old, down.contiguous(), up.contiguous(), broken, rows, columns, down.shape[0], multiplier, scale,
            ROWS=_ROWS, COLUMNS=_COLUMNS, RANK=_RANK, enable_fp_fusion=False,
        )  # fmt: skip


def _kernel() -> Any:
    """Return the kernel; Triton comes with torch for GPUs only."""
    from worker.kernels.low_rank_kernel import add_low_rank

    return add_low_rank
