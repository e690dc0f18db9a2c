"""Keep the weights of linear layers in float8, as the previews of AI Toolkit jobs with `quantize: true` do.

It halves the memory. Each output row has a scale, so splitting or reordering rows changes nothing. The arithmetic is
that of optimum-quanto's `qfloat8`, weights only, and tests hold it to that package bit for bit; the package itself is
not used, because beside a GPU it picks a kernel that it compiles with nvcc on first use, into its own folder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FLOAT8 = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """A linear layer whose weight is (out, in) in float8, times `scale`, (out, 1) in the dtype of its activations."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)  # so that names stay those of the plain layer
        self.bias = bias

    def dense(self) -> Tensor:
        """Return the weight as it is multiplied, (out, in)."""
        scale: Tensor = self.scale  # type: ignore[assignment]
        return scale * self.weight.to(scale.dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        product = functional.linear(hidden_states, self.dense())
        return product if self.bias is None else product + self.bias


def dense_weight(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight, (out, in), as its forward multiplies by it."""
    weight: Tensor = layer.dense() if isinstance(layer, Float8Linear) else layer.weight  # type: ignore[assignment]
    return weight


def to_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return float8 values and the scale, (out, 1), that puts each row's largest value on float8's largest.

    Both are computed in the weight's dtype, as quanto does; a row of zeros has scale 1 where quanto's would be NaN.
    """
    limit = torch.finfo(FLOAT8).max
    scale = weight.abs().amax(dim=1, keepdim=True) / limit
    scale = scale.masked_fill(scale == 0, 1)
    return (weight / scale).clamp(-limit, limit).to(FLOAT8), scale


@torch.no_grad()
def quantize(model: nn.Module, *, device: torch.device) -> None:
    """Replace every linear layer of `model` and move it, layer by layer: the device never holds the whole original."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            weight, scale = to_float8(layer.weight.to(device))
            model.set_submodule(path, Float8Linear(weight, scale, layer.bias))
    model.to(device)
