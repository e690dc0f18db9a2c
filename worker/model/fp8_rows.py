"""Rows of activations and of weights in float8 (e4m3), each with its own scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker.model.qfloat8 import FLOAT8

#: The largest value in float8.
LARGEST = torch.finfo(FLOAT8).max
# The smallest scale: the largest value of a row of zeros is 0, which must not divide.
_TINY = 1e-12


class QuantizedRows(NamedTuple):
    """Quantised rows of activations.

    Attributes:
        values: (batch, tokens, columns), float8.
        scales: (batch, tokens, 1), float32.
    """

    values: Tensor
    scales: Tensor


@torch.library.custom_op("flux2::quantize_rows", mutates_args=())
def quantize_rows(
    plain: Tensor | None, gate_up: Tensor | None, plain_scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return float8 values, and for each row the float32 scale that maps float8's largest value to the row's largest.

    Args:
        plain: (rows, columns), columns contiguous.
        gate_up: (rows, 2 * columns), which stands for ``silu(first half) * second half``. With both arguments, each row
            is the row of `plain` followed by that product.
        plain_scales: (rows, 1), float32, if `plain` is in float8. Each row's new scale is then the old one times a
            power of two, so its values are not rounded again, unless they become smaller than float8's normal numbers.
    """
    # One scale for both parts is enough: float8 is as exact for small values as for large ones.
    quantized, scales = _empty(plain, gate_up)
    quantize_into(plain, gate_up, quantized, scales, plain_scales=plain_scales)
    return quantized, scales


@quantize_rows.register_fake
def _empty(plain: Tensor | None, gate_up: Tensor | None, plain_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    parts = [part for part in (plain, gate_up) if part is not None]
    rows = parts[0].shape[0]
    columns = (0 if plain is None else plain.shape[1]) + (0 if gate_up is None else gate_up.shape[1] // 2)
    return parts[0].new_empty(rows, columns, dtype=FLOAT8), parts[0].new_empty(rows, 1, dtype=torch.float32)


def quantize_into(
    plain: Tensor | None,
    gate_up: Tensor | None,
    quantized: Tensor,
    scales: Tensor,
    *,
    plain_scales: Tensor | None = None,
) -> None:
    """Write the results of `quantize_rows` into two tensors."""
    if quantized.is_cuda:
        from worker.kernels.fp8_kernel import launch

        with torch.cuda.device(quantized.device):
            launch(plain, gate_up, quantized, scales, plain_scales=plain_scales)
        return
    values = join_rows(plain, gate_up, plain_scales=plain_scales)
    found = scale_for(values.abs().amax(dim=-1, keepdim=True))
    if plain is not None and plain_scales is not None:
        powers = _power_of_two_from(found / plain_scales)
        found = plain_scales * powers
        quantized[:, plain.shape[1] :] = round_to_float8(values[:, plain.shape[1] :], found)
        # Not through `values`, which are rounded: a value half way between two subnormal numbers could go either way.
        quantized[:, : plain.shape[1]] = (plain.float() / powers).to(FLOAT8)
    else:
        quantized.copy_(round_to_float8(values, found))
    scales.copy_(found)


def join_rows(plain: Tensor | None, gate_up: Tensor | None, *, plain_scales: Tensor | None = None) -> Tensor:
    """Return the rows that `quantize_rows` quantises, in float32."""
    parts = [] if plain is None else [plain.float() * (1.0 if plain_scales is None else plain_scales)]
    if gate_up is not None:
        gate, up = gate_up.float().chunk(2, dim=-1)
        parts.append(functional.silu(gate) * up)
    return torch.cat(parts, dim=-1)


@torch.library.custom_op("flux2::norm_rows", mutates_args=())
def norm_rows(hidden_states: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the fields of `QuantizedRows` for ``(1 + scale) * layer_norm(hidden_states) + shift``.

    Args:
        hidden_states: (batch, tokens, columns).
        shift, scale: (batch, 1, columns).
    """
    if not hidden_states.is_cuda:
        normed = functional.layer_norm(hidden_states.float(), hidden_states.shape[-1:], eps=eps)
        values = (1 + scale.float()) * normed + shift.float()
        scales = scale_for(values.abs().amax(dim=-1, keepdim=True))
        return round_to_float8(values, scales), scales
    from worker.kernels.fp8_kernel import launch_norm

    # One kernel for all three operations reads each value once.
    quantized, scales = _empty_normed(hidden_states, shift, scale, eps)
    with torch.cuda.device(quantized.device):
        launch_norm(hidden_states.contiguous(), shift.contiguous(), scale.contiguous(), eps, quantized, scales)
    return quantized, scales


@norm_rows.register_fake
def _empty_normed(hidden_states: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scales = hidden_states.new_empty(*hidden_states.shape[:-1], 1, dtype=torch.float32)
    return hidden_states.new_empty(hidden_states.shape, dtype=FLOAT8), scales


def round_to_float8(values: Tensor, scale: Tensor) -> Tensor:
    """Return ``values / scale`` in float8; values out of its range become the largest that it has."""
    return (values / scale).clamp(-LARGEST, LARGEST).to(FLOAT8)


def scale_for(largest: Tensor) -> Tensor:
    """Return the scale that maps float8's largest value to this one."""
    return largest.float().div(LARGEST).clamp_min(_TINY)


def _power_of_two_from(values: Tensor) -> Tensor:
    """Return the smallest power of two that is not below each positive float32 value."""
    # A float32 is a power of two if the last 23 bits, its fraction, are zero.
    return ((values.view(torch.int32) + 0x7FFFFF) & ~0x7FFFFF).view(torch.float32)
