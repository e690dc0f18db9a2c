"""The Triton kernel of `worker.model.rotary_norm`.

Only torch for GPUs brings Triton, so this module is imported when the kernel first runs.
"""

import triton
import triton.language as tl
from torch import Tensor


def launch(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float, turned: Tensor) -> None:
    """Normalise and rotate heads of 128 channels; see `worker.model.rotary_norm.norm_and_rotate`."""
    batch, tokens, heads, _ = values.shape
    # `enable_fp_fusion`: a fused multiply-add rounds once where torch's two operations round twice.
    _norm_and_rotate[(batch * tokens,)](
        values, *values.stride()[:3], weight, cosines, cosines.stride(0), sines, sines.stride(0), turned,
        tokens, heads, eps, HEADS=triton.next_power_of_2(heads), enable_fp_fusion=False, num_warps=4,
    )  # fmt: skip


@triton.jit
def _norm_and_rotate(
    values,
    batch_stride,
    token_stride,
    head_stride,
    weight,
    cosines,
    cosine_stride,
    sines,
    sine_stride,
    turned,
    tokens,
    heads,
    eps,
    HEADS: tl.constexpr,
):
    """Normalise and rotate all heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    position = token % tokens
    values += (token // tokens) * batch_stride + position * token_stride
    cosines += position * cosine_stride
    sines += position * sine_stride
    rotated = rotated_heads(values, head_stride, weight, cosines, sines, heads, eps, HEADS)
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    tl.store(turned + token * heads * 128 + head * 128 + channel, rotated, mask=head < heads)


@triton.jit
def rotated_heads(values, head_stride, weight, cosines, sines, heads, eps, HEADS: tl.constexpr):
    """Return the heads of one token after their norm and their rotation, (HEADS, 128).

    The pointers are the token's; the launch must set `enable_fp_fusion=False`.
    """
    # Sums have torch's order: four neighbours one after the other, then the 32 results in halves. Each step below adds
    # two values, which have no order, so the compiler cannot choose another one.
    dtype = values.dtype.element_ty
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, 128)[None, :]
    value = tl.load(values + head * head_stride + channel, mask=head < heads, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(value, (HEADS, 64, 2)))
    first, third = tl.split(tl.reshape(even * even, (HEADS, 32, 2)))
    second, fourth = tl.split(tl.reshape(odd * odd, (HEADS, 32, 2)))
    total = first + second + third + fourth
    total = tl.sum(tl.reshape(total, (HEADS, 2, 16)), 1)
    total = tl.sum(tl.reshape(total, (HEADS, 2, 8)), 1)
    total = tl.sum(tl.reshape(total, (HEADS, 2, 4)), 1)
    total = tl.sum(tl.reshape(total, (HEADS, 2, 2)), 1)
    inverse = tl.rsqrt(tl.sum(total, 1) / 128.0 + eps)[:, None]
    pair = 2 * tl.arange(0, 64)[None, :]
    even = _normed(even, inverse, weight + pair, dtype)
    odd = _normed(odd, inverse, weight + pair + 1, dtype)
    left = even * tl.load(cosines + pair) - odd * tl.load(sines + pair)
    right = odd * tl.load(cosines + pair + 1) + even * tl.load(sines + pair + 1)
    return tl.reshape(tl.join(left, right), (HEADS, 128)).to(dtype)


@triton.jit
def _normed(value, inverse, weight, dtype: tl.constexpr):
    # Rounded to the model's dtype after each operation, as the modules round.
    rounded = (value * inverse).to(dtype).to(tl.float32)
    return (rounded * tl.load(weight).to(tl.float32)).to(dtype).to(tl.float32)
