"""The kernel of `worker.pipeline.fast`; a module of its own, because only torch for GPUs brings Triton."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


def launch(values: Tensor, quantized: Tensor, scales: Tensor, *, gated: bool) -> None:
    """Quantise rows; see `worker.pipeline.fast.quantize_rows`."""
    rows, columns = quantized.shape
    _quantize_row[(rows,)](values, values.stride(0), quantized, scales, columns, GATED=gated, BLOCK=_BLOCK, num_warps=8)


@triton.jit
def _quantize_row(
    values,
    stride,
    quantized,
    scales,
    columns,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find one row's largest value, then read the row again, from the cache, and divide."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        largest = tl.maximum(largest, tl.abs(_load(values + row * stride, start, columns, GATED, BLOCK)))
    scale = tl.maximum(tl.max(largest) / 448.0, 1e-12)
    tl.store(scales + row, scale)
    for start in range(0, columns, BLOCK):
        value = _load(values + row * stride, start, columns, GATED, BLOCK) / scale
        value = tl.minimum(tl.maximum(value, -448.0), 448.0)
        column = start + tl.arange(0, BLOCK)
        tl.store(quantized + row * columns + column, value.to(tl.float8e4nv), mask=column < columns)


@triton.jit
def _load(values, start, columns, GATED: tl.constexpr, BLOCK: tl.constexpr):
    column = start + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(values + column, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        up = tl.load(values + columns + column, mask=inside, other=0.0).to(tl.float32)
        value = value * tl.sigmoid(value) * up
    return value
