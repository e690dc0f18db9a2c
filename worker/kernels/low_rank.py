"""Add a LoRA to a weight on a GPU, in one pass over the weight, with the bits of torch's operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.kernels.toolchain import triton_unavailable_reason

_ROWS, _COLUMNS, _RANK = 64, 64, 16
# FLUX.2's layers have 786,432 values and more. For smaller or odd shapes torch picks kernels that add up in parts.
_MIN_VALUES = 500_000


def can_add_low_rank(weight: Tensor) -> bool:
    """Whether `add_low_rank` runs on this host and gives torch's bits for a weight of this shape."""
    rows, columns = weight.shape
    return (
        weight.is_cuda
        and triton_unavailable_reason() is None
        and rows % _ROWS == 0
        and columns % _COLUMNS == 0
        and weight.numel() >= _MIN_VALUES
    )


def add_low_rank(
    weight: Tensor, down: Tensor, up: Tensor, *, old: Tensor, multiplier: float, scale: float, non_finite: Tensor
) -> None:
    """Write ``old + up @ down * multiplier * scale`` to `weight`.

    Args:
        weight: (out, in), contiguous, on a GPU; see `can_add_low_rank`.
        old: same shape and dtype as `weight`; may be `weight` itself.
        down: (rank, in).
        up: (out, rank).
        non_finite: int32, one value on the GPU; set to 1 if any written value is not finite.
    """
    # Each weight is read and written once, 4 bytes for each value. Torch's operations make about a dozen passes over
    # the weight and over float32 values of its size, which takes 0.7 s for FLUX.2 [dev] on an H100.
    rows, columns = weight.shape
    grid = (-(-rows // _ROWS) * -(-columns // _COLUMNS),)
    # `enable_fp_fusion`: a fused multiply-add rounds once where torch's two operations round twice.
    with torch.cuda.device(weight.device):
        _kernel()[grid](
            weight, old, down.contiguous(), up.contiguous(), non_finite, rows, columns, down.shape[0],
            multiplier, scale, ROWS=_ROWS, COLUMNS=_COLUMNS, RANK=_RANK, enable_fp_fusion=False,
        )  # fmt: skip


def _kernel() -> Any:
    # Imported late: only torch for GPUs brings Triton.
    from worker.kernels.low_rank_kernel import add_low_rank

    return add_low_rank
