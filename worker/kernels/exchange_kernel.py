"""Triton kernels that write rows of attention straight into the memory of other devices.

Each device has a buffer that all others can write. Only torch for GPUs brings Triton, so this module is imported when
a kernel first runs.
"""

import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.attention_kernel import rotated_heads


def send(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    norms: tuple[Tensor, Tensor],
    angles: tuple[Tensor, Tensor],
    eps: float,
    rows: Tensor,
    buffers: Tensor,
    receivers: range,
    staged_by: int | None = None,
) -> None:
    """Write to each device its share of the heads of 128 channels; queries and keys are normalised and rotated.

    Args:
        query, key, value: (tokens, heads, 128), channels contiguous.
        norms: weights of the RMS norms of queries and keys, (128,).
        angles: cosines and sines of these tokens, (tokens, 128), float32.
        rows: (tokens,) int32: the row of the whole sequence that each token is.
        buffers: (3, devices) int64: for queries, keys and values, the address of each device's (rows, its heads, 128).
        receivers: the devices that receive heads.
        staged_by: this device, if the buffers of the others hold only this device's tokens, in their order.
    """
    cosines, sines = angles
    tokens, heads, _ = query.shape
    _send[(tokens,)](
        query, *query.stride()[:2], key, *key.stride()[:2], value, *value.stride()[:2], *norms, cosines,
        cosines.stride(0), sines, sines.stride(0), rows, buffers, staged_by or 0, receivers.start, receivers.stop,
        heads, heads // buffers.shape[1], eps, HEADS=triton.next_power_of_2(heads), STAGED=staged_by is not None,
        enable_fp_fusion=False, num_warps=8,
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
def _send(
    query, query_token, query_head, key, key_token, key_head, value, value_token, value_head, query_norm, key_norm,
    cosines, cosine_stride, sines, sine_stride, rows, buffers, sender, first, stop, heads, share, eps,
    HEADS: tl.constexpr, STAGED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    cosines += token * cosine_stride
    sines += token * sine_stride
    own_row = tl.load(rows + token).to(tl.int64)
    row = token if STAGED else own_row
    rotated = rotated_heads(query + token * query_token, query_head, query_norm, cosines, sines, heads, eps, HEADS)
    _write_shares(rotated, own_row, row, buffers, sender, first, stop, heads, share, HEADS)
    buffers += heads // share
    rotated = rotated_heads(key + token * key_token, key_head, key_norm, cosines, sines, heads, eps, HEADS)
    _write_shares(rotated, own_row, row, buffers, sender, first, stop, heads, share, HEADS)
    buffers += heads // share
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    plain = tl.load(value + token * value_token + head * value_head + channel, mask=head < heads, other=0.0)
    _write_shares(plain, own_row, row, buffers, sender, first, stop, heads, share, HEADS)


@triton.jit
def _write_shares(value, own_row, row, buffers, sender, first, stop, heads, share, HEADS: tl.constexpr):
    """Write one token's heads, (HEADS, 128), to the devices from `first` to before `stop`."""
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    for device in range(first, stop):
        # Without the alignment, the compiler writes two bytes at a time, which takes 80 times as long.
        buffer = tl.multiple_of(tl.load(buffers + device).to(tl.pointer_type(value.dtype)), 128)
        offset = (tl.where(device == sender, own_row, row) - device) * share * 128
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
