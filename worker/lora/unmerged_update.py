"""Run an adapter beside a layer instead of folding it into the weight.

AI Toolkit previews this way where it does not merge: on quantised weights, with a DoRA, and when the samples of a
config differ in their multiplier. In bfloat16 that rounds elsewhere than a merged weight does, so each kind follows the
trainer's order of operations: a LoRA runs in float32, a LoKr in the layer's dtype. A kind is one entry of `_LIVE` and
one function; which layer it runs beside is `worker.lora.unmerged`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shared.adapters.kinds import LayerUpdate
from worker.lora.merge import factor, scale_of

#: From a layer's input (..., in) and output (..., rows) to the output with the adapter.
Live = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class UnmergedUpdate:
    """An update and the layer that it runs beside.

    Attributes:
        tensors: the adapter file's, by key, on the layer's device.
        weight: the layer's weight, (rows, in), as it is multiplied; asked for in each pass.
        take: picks the layer's rows of a tensor whose first size is the update's rows.
    """

    update: LayerUpdate
    tensors: Mapping[str, Tensor]
    multiplier: float
    weight: Callable[[], Tensor]
    take: Callable[[Tensor], Tensor]

    def tensor(self, role: str) -> Tensor:
        return self.tensors[self.update.tensors[role]].float()


def forward_patch(beside: UnmergedUpdate) -> Live:
    """Return what the update does to the layer's output.

    Source:
        forward of ToolkitModuleMixin, DoRAModule, LokrModule and FullModule in ai-toolkit's toolkit/network_mixins.py,
        toolkit/models/ and toolkit/lora_special.py
    """
    return _LIVE[beside.update.kind](beside)


def _lora(beside: UnmergedUpdate) -> Live:
    down, up = beside.tensor("down"), beside.take(beside.tensor("up"))
    scale, multiplier = scale_of(beside.update, beside.tensors), beside.multiplier

    def live(inputs: Tensor, output: Tensor) -> Tensor:
        update = functional.linear(functional.linear(inputs.float(), down), up) * scale * multiplier
        return output + update.to(output.dtype)

    return live


def _dora(beside: UnmergedUpdate) -> Live:
    down, up = beside.tensor("down"), beside.take(beside.tensor("up"))
    magnitude = beside.take(beside.tensor("magnitude"))
    scale, multiplier = scale_of(beside.update, beside.tensors), beside.multiplier

    def live(inputs: Tensor, output: Tensor) -> Tensor:
        wide = inputs.float()
        update = functional.linear(functional.linear(wide, down), up) * scale * multiplier
        adapted = beside.weight().float() + (up @ down) * scale * multiplier
        stretch = magnitude / torch.linalg.norm(adapted, dim=1) - 1
        turned = stretch * functional.linear(wide, adapted)
        total: Tensor = output + (update.to(output.dtype) + turned.to(output.dtype))
        return total

    return live


def _fullrank(beside: UnmergedUpdate) -> Live:
    delta, multiplier = beside.take(beside.tensor("down")), beside.multiplier

    def live(inputs: Tensor, output: Tensor) -> Tensor:
        return output + (functional.linear(inputs.float(), delta) * multiplier).to(output.dtype)

    return live


def _diff(beside: UnmergedUpdate) -> Live:
    """Run the layer again with its weight changed: the sum is rounded before it is multiplied."""
    delta = beside.take(beside.tensor("diff")) * beside.multiplier

    def live(inputs: Tensor, output: Tensor) -> Tensor:
        weight = beside.weight()
        return functional.linear(inputs, weight + delta.to(weight.dtype))

    return live


def _lokr(beside: UnmergedUpdate) -> Live:
    update, tensors = beside.update, beside.tensors
    first, scale = factor("w1", update, tensors), scale_of(update, tensors)
    second = [beside.tensor(role) for role in ("w2", "w2_b", "w2_a") if role in update.tensors]
    blocks = first.shape[1]

    def live(inputs: Tensor, output: Tensor) -> Tensor:
        dtype = output.dtype
        # kron(w1, w2) x, without the product: w2 on each block of x, then w1 across the blocks.
        turned = inputs.view(*inputs.shape[:-1], blocks, -1)
        for matrix in second:
            turned = torch.einsum("...qs,os->...qo", turned, matrix.to(dtype))
        delta = torch.einsum("...qo,pq->...po", turned, first.to(dtype) * scale).flatten(-2, -1)
        rows = beside.take(delta.movedim(-1, 0)).movedim(0, -1)
        return output + rows * torch.tensor(beside.multiplier, dtype=dtype)

    return live


_LIVE: dict[str, Callable[[UnmergedUpdate], Live]] = {
    "lora": _lora,
    "dora": _dora,
    "lokr": _lokr,
    "fullrank": _fullrank,
    "diff": _diff,
}
