"""The Triton kernels of `worker.model.fp8_attention`, which quantise queries, keys and values.

Only torch for GPUs brings Triton, so this module is imported when a kernel first runs.
"""

import math

import triton
import triton.language as tl
from torch import Tensor


def turn_and_quantize(
    part: tuple[Tensor, Tensor, Tensor],
    angles: tuple[Tensor, Tensor],
    eps: float,
    *,
    norms: tuple[Tensor, Tensor],
    all_norms: tuple[Tensor, Tensor, Tensor, Tensor],
    start: int,
    to: tuple[Tensor, Tensor],
    scales: Tensor,
    largest: Tensor,
) -> None:
    """Normalise, rotate and quantise queries and keys of a part of a sequence, and find its largest value.

    Args:
        part: queries, keys and values, (batch, tokens, heads, 128), channels contiguous.
        angles: cosines and sines of the whole sequence, (all tokens, 128), float32.
        norms: weights of the norms of queries and keys.
        all_norms: the same of the sequence's first part, followed by those of its last.
        start: the part's first token in the sequence.
        to: queries and keys of the whole sequence in float8, (batch, all tokens, heads, 128).
        scales: (4, any), float32; the first two rows receive the scales of queries and keys.
        largest: (1,), float32; receives the largest value, if that is larger.
    """
    batch, count, heads, width = part[0].shape
    cosines, sines = angles
    _turn_and_quantize[(batch * count, 3)](
        *part, *(stride for values in part for stride in values.stride()[:3]), *norms, *all_norms, cosines, sines,
        cosines.stride(0), *to, scales, largest, start, count, eps, math.sqrt(width), to[0].shape[1], heads,
        HEADS=triton.next_power_of_2(heads), APART=scales.stride(0), num_warps=4,
    )  # fmt: skip


def quantize_values(value: Tensor, *, largest: Tensor, start: int, to: Tensor, scales: Tensor, rows: Tensor) -> None:
    """Quantise values of a part of a sequence with the scale that fits the largest.

    Args:
        value: (batch, tokens, heads, 128), channels contiguous.
        largest: (1,), float32.
        start: the part's first token in the sequence.
        to: values of the whole sequence in float8, (batch, all tokens, heads, 128).
        scales: (4, any), float32; the last two rows receive the scale and its reciprocal.
        rows: (batch, all tokens, 1), float32; each of the part's tokens receives the scale.
    """
    batch, count, heads, _ = value.shape
    _quantize_values[(batch * count,)](
        value, *value.stride()[:3], to, rows, scales, largest, start, count, to.shape[1], heads,
        HEADS=triton.next_power_of_2(heads), APART=scales.stride(0), num_warps=4,
    )  # fmt: skip


@triton.jit
def _turn_and_quantize(
    query, key, value, query_batch, query_token, query_head, key_batch, key_token, key_head, value_batch, value_token,
    value_head, query_norm, key_norm, first_query_norm, first_key_norm, last_query_norm, last_key_norm, cosines, sines,
    angle_stride, query_out, key_out, scales, largest, start, count, eps, longest, tokens, heads, HEADS: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Quantise the queries (0) or the keys (1) of one token, or find the largest of its values (2)."""
    row = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(1)
    batch, token = row // count, row % count
    position = start + token
    cosines += position * angle_stride
    sines += position * angle_stride
    out = (batch * tokens + position) * heads * 128
    if kind == 0:
        query += batch * query_batch + token * query_token
        scale = _scale_of(first_query_norm, last_query_norm, longest)
        tl.store(scales, scale)
        _turn(query, query_head, query_norm, cosines, sines, eps, scale, query_out + out, heads, HEADS)
    elif kind == 1:
        key += batch * key_batch + token * key_token
        scale = _scale_of(first_key_norm, last_key_norm, longest)
        tl.store(scales + APART, scale)
        _turn(key, key_head, key_norm, cosines, sines, eps, scale, key_out + out, heads, HEADS)
    else:
        values = _load(value + batch * value_batch + token * value_token, value_head, heads, HEADS)
        # Which token comes first does not matter: the largest of all is the same.
        tl.atomic_max(largest, tl.max(tl.abs(values)), sem="relaxed")


@triton.jit
def _quantize_values(
    value, value_batch, value_token, value_head, value_out, rows, scales, largest, start, count, tokens, heads,
    HEADS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Quantise the values of one token."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // count, row % count
    out = batch * tokens + start + token
    scale = tl.maximum(tl.load(largest) / 448.0, 1e-12)
    tl.store(rows + out, scale)
    tl.store(scales + 2 * APART, scale)
    tl.store(scales + 3 * APART, 1.0 / scale)
    values = _load(value + batch * value_batch + token * value_token, value_head, heads, HEADS)
    _store(value_out + out * heads * 128, values * (1.0 / scale), heads, HEADS)


@triton.jit
def _turn(values, head_stride, norm, cosines, sines, eps, scale, out, heads, HEADS: tl.constexpr):
    """Normalise, rotate and quantise the heads of one token."""
    # In float32 from end to end: other roundings than in `worker.kernels.attention_kernel`, and fewer.
    value = _load(values, head_stride, heads, HEADS)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / 128.0 + eps)[:, None] / scale
    even, odd = tl.split(tl.reshape(value, (HEADS, 64, 2)))
    pair = 2 * tl.arange(0, 64)[None, :]
    even *= inverse * tl.load(norm + pair).to(tl.float32)
    odd *= inverse * tl.load(norm + pair + 1).to(tl.float32)
    left = even * tl.load(cosines + pair) - odd * tl.load(sines + pair)
    right = odd * tl.load(cosines + pair + 1) + even * tl.load(sines + pair + 1)
    _store(out, tl.reshape(tl.join(left, right), (HEADS, 128)), heads, HEADS)


@triton.jit
def _scale_of(first_norm, last_norm, longest):
    """Return the scale of all queries or keys; see `worker.model.fp8_attention`."""
    channel = tl.arange(0, 128)
    first = tl.max(tl.abs(tl.load(first_norm + channel).to(tl.float32)))
    last = tl.max(tl.abs(tl.load(last_norm + channel).to(tl.float32)))
    return tl.maximum(longest * tl.maximum(first, last) / 448.0, 1e-12)


@triton.jit
def _load(values, head_stride, heads, HEADS: tl.constexpr):
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    return tl.load(values + head * head_stride + channel, mask=head < heads, other=0.0).to(tl.float32)


@triton.jit
def _store(out, value, heads, HEADS: tl.constexpr):
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    # By their scale, no value is above 448 by more than a rounding.
    tl.store(out + head * 128 + channel, value.to(tl.float8e4nv), mask=head < heads)
