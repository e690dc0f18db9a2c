"""Store the weights of linear layers in float8, like AI Toolkit's previews of jobs with `quantize: true`.

Float8 halves the memory. The arithmetic is that of optimum-quanto's `qfloat8`, weights only, and tests compare the two
bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.model.linear_product import LinearProduct

# Optimum-quanto itself is not used: on a GPU it compiles a kernel with nvcc at the first use, into its own folder.
FLOAT8 = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """A linear layer whose weight is (out, in) in float8, times `scale`, (out, 1) in the dtype of its activations."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer(
            "scale", scale, persistent=False
        )  # not persistent, so the state has the plain layer's names
        self.bias = bias

    def dense(self) -> Tensor:
        """Return the weight that the layer multiplies by, (out, in)."""
        scale: Tensor = self.scale  # type: ignore[assignment]
        return scale * self.weight.to(scale.dtype)

    def product(self, hidden_states: Tensor) -> LinearProduct:
        """Return the factors of `forward`'s product, without the bias."""
        return LinearProduct(hidden_states, self.dense(), hidden_states.dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        product = self.product(hidden_states).compute()
        return product if self.bias is None else product + self.bias


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight that a linear layer multiplies by, (out, in)."""
    weight: Tensor = layer.dense() if isinstance(layer, Float8Linear) else layer.weight  # type: ignore[assignment]
    return weight


def to_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return float8 values, and the scale, (out, 1), that maps float8's largest value to each row's largest."""
    # A scale for each output row, so that splitting or reordering rows changes nothing. In the weight's dtype, like
    # quanto. A row of zeros has scale 1 here; quanto's would be NaN.
    limit = torch.finfo(FLOAT8).max
    scale = weight.abs().amax(dim=1, keepdim=True) / limit
    scale = scale.masked_fill(scale == 0, 1)
    return (weight / scale).clamp(-limit, limit).to(FLOAT8), scale


@torch.no_grad()
def quantize(model: nn.Module, *, device: torch.device) -> None:
    """Replace every linear layer of `model` and move the model to the device."""
    # Layer by layer: the device never holds all of the original weights.
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            weight, scale = to_float8(layer.weight.to(device))
            model.set_submodule(path, Float8Linear(weight, scale, layer.bias))
    model.to(device)
