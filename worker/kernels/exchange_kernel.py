"""Triton kernels that write rows of attention straight into the memory of other devices.

Each device has a buffer that all others can write. Only torch for GPUs brings Triton, so this module is imported when
a kernel first runs.
"""

import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.attention_kernel import rotated_heads


def send_rotated(
    values: Tensor,
    weight: Tensor,
    cosines: Tensor,
    sines: Tensor,
    eps: float,
    *,
    rows: Tensor,
    buffers: Tensor,
    receivers: range,
) -> None:
    """Normalise and rotate heads of 128 channels, and write to each device its share of them.

    Args:
        values: (tokens, heads, 128); `send` has the other arguments.
    """
    tokens, heads, _ = values.shape
    _send_rotated[(tokens,)](
        values, *values.stride()[:2], weight, cosines, cosines.stride(0), sines, sines.stride(0), rows, buffers,
        receivers.start, receivers.stop, heads, heads // len(buffers), eps, HEADS=triton.next_power_of_2(heads),
        enable_fp_fusion=False, num_warps=8,
    )  # fmt: skip


def send(values: Tensor, *, rows: Tensor, buffers: Tensor, receivers: range) -> None:
    """Write to each device its share of the heads.

    Args:
        values: (tokens, heads, 128), channels contiguous.
        rows: (tokens,) int32: the row of the whole sequence that each token is.
        buffers: (devices,) int64: address of each device's (rows, its heads, 128).
        receivers: the devices that receive heads.
    """
    tokens, heads, _ = values.shape
    _send[(tokens,)](
        values, *values.stride()[:2], rows, buffers, receivers.start, receivers.stop, heads, heads // len(buffers),
        HEADS=triton.next_power_of_2(heads), num_warps=8,
    )  # fmt: skip


def return_rows(values: Tensor, *, owners: Tensor, rows: Tensor, buffers: Tensor, sender: int) -> None:
    """Write each row of the attended sequence to the device that computes it.

    Args:
        values: (rows, heads of this device, 128), contiguous.
        owners: (rows,) int32: device of each row; -1 for all devices.
        rows: (rows,) int32: index among the rows of its device.
        buffers: (devices,) int64: address of each device's (its rows, all heads, 128).
        sender: this device.
    """
    count, heads, width = values.shape
    size = heads * width
    _return_rows[(count,)](
        values, owners, rows, buffers, sender, len(buffers), size, BLOCK=triton.next_power_of_2(size), num_warps=4
    )


@triton.jit
def _send_rotated(
    values, token_stride, head_stride, weight, cosines, cosine_stride, sines, sine_stride, rows, buffers,
    first, stop, heads, share, eps, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    rotated = rotated_heads(
        values + token * token_stride, head_stride, weight, cosines + token * cosine_stride,
        sines + token * sine_stride, heads, eps, HEADS,
    )  # fmt: skip
    _write_shares(rotated, tl.load(rows + token), buffers, first, stop, heads, share, HEADS)


@triton.jit
def _send(
    values, token_stride, head_stride, rows, buffers, first, stop, heads, share, HEADS: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    value = tl.load(values + token * token_stride + head * head_stride + channel, mask=head < heads, other=0.0)
    _write_shares(value, tl.load(rows + token), buffers, first, stop, heads, share, HEADS)


@triton.jit
def _write_shares(value, row, buffers, first, stop, heads, share, HEADS: tl.constexpr):
    """Write one token's heads, (HEADS, 128), to the devices from `first` to before `stop`."""
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    for device in range(first, stop):
        # Without the alignment, the compiler writes two bytes at a time, which takes 80 times as long.
        buffer = tl.multiple_of(tl.load(buffers + device).to(tl.pointer_type(value.dtype)), 128)
        offset = (row.to(tl.int64) - device) * share * 128
        tl.store(buffer + offset + head * 128 + channel, value, mask=(head < heads) & (head // share == device))


@triton.jit
def _return_rows(values, owners, rows, buffers, sender, devices, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, BLOCK)
    part = tl.load(values + row * size + offset, mask=offset < size)
    owner = tl.load(owners + row)
    target = tl.load(rows + row).to(tl.int64)
    first = tl.where(owner < 0, 0, owner)
    stop = tl.where(owner < 0, devices, owner + 1)
    for device in range(first, stop):
        buffer = tl.multiple_of(tl.load(buffers + device).to(tl.pointer_type(values.dtype.element_ty)), 128)
        tl.store(buffer + target * size * devices + sender * size + offset, part, mask=offset < size)
