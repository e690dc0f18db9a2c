"""Products of linear layers that are computed in parts, so that one part can be used while the next is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearProduct(NamedTuple):
    """The factors of a linear layer's product.

    Attributes:
        values: activations, (batch, tokens, in).
        weight: (out, in).
        dtype: of the product.
        value_scales: (batch, tokens, 1), float32, if both factors are float8; otherwise None.
        weight_scales: (out, 1), float32, if both factors are float8; otherwise None.
    """

    values: Tensor
    weight: Tensor
    dtype: torch.dtype
    value_scales: Tensor | None = None
    weight_scales: Tensor | None = None

    def compute(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Multiply by some rows of the weight, all by default: (batch, tokens, rows)."""
        weight = self.weight[start:stop]
        if self.value_scales is None or self.weight_scales is None:
            return functional.linear(self.values, weight)
        return _scaled_product(self.values, self.value_scales, weight, self.weight_scales[start:stop], self.dtype)


def product_of(layer: nn.Module, values: Any) -> LinearProduct | None:
    """Return the factors of a layer's product; None if the layer computes something else, or only as a whole.

    Args:
        values: the layer's input.
    """
    # Hooks, such as those of unmerged adapters, receive the whole output.
    if layer._forward_hooks or layer._forward_pre_hooks or getattr(layer, "bias", None) is not None:
        return None
    if type(layer) is nn.Linear:
        return LinearProduct(values, layer.weight, layer.weight.dtype)
    factors: Any = getattr(layer, "product", None)
    return None if factors is None else factors(values)


def _scaled_product(
    values: Tensor, value_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    if not values.is_cuda:
        return functional.linear(values.float() * value_scales, weight.float() * weight_scales).to(dtype)
    # Fast accumulation keeps sums in the tensor cores' own precision: faster, and part of the measured error.
    product = torch._scaled_mm(
        values.flatten(0, -2), weight.t(), scale_a=value_scales.flatten(0, -2), scale_b=weight_scales.t(),
        out_dtype=dtype, use_fast_accum=True,
    )  # fmt: skip
    return product.view(*values.shape[:-1], -1)
