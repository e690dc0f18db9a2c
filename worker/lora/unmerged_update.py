"""Compute the contribution of an unmerged adapter to a layer's output.

AI Toolkit previews this way on quantised weights, with a DoRA, and when the samples of a config differ in their
multiplier. In bfloat16 the results round elsewhere than those of a merged weight, so each kind follows the trainer's
order of operations. Each kind is one function in `_PATCHES`; `worker.lora.unmerged` attaches the result to a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from shared.adapters.kinds import LayerUpdate
from worker.lora.merge import (
    LOHA_FACTORS,
    RowSelection,
    dense_delta,
    loha_delta,
    lokr_factor,
    scale_of,
    scales_columns,
)

#: Maps a layer's input (..., in) and output (..., rows) to the output with the adapter.
ForwardPatch = Callable[[Tensor, Tensor], Tensor]


def _all_rows(tensor: Tensor) -> Tensor:
    return tensor


class UpdatedRows(NamedTuple):
    """Rows of an update, and the layer that holds them.

    Attributes:
        weight: returns the dense weight of the layer, (rows, in); called in each pass.
        select: picks the layer's rows of a tensor whose first dimension is the update's rows.
    """

    weight: Callable[[], Tensor]
    select: RowSelection = _all_rows


@dataclass(frozen=True)
class UnmergedUpdate:
    """An update that is applied to one layer's output.

    Attributes:
        tensors: the adapter file's tensors, by key, on the layer's device.
        rows: the rows of this layer.
        others: the rows that other layers hold; needed only if the update scales columns.
    """

    update: LayerUpdate
    tensors: Mapping[str, Tensor]
    multiplier: float
    rows: UpdatedRows
    others: Sequence[UpdatedRows] = ()

    def tensor(self, role: str) -> Tensor:
        return self.tensors[self.update.tensors[role]].float()


def forward_patch(unmerged: UnmergedUpdate) -> ForwardPatch:
    """Return a function that adds the update to the layer's output.

    Source:
        forward of ToolkitModuleMixin, DoRAModule, LokrModule and FullModule in ai-toolkit's toolkit/network_mixins.py,
        toolkit/models/ and toolkit/lora_special.py
    """
    update = unmerged.update
    # AI Toolkit has no other DoRA than one that scales the rows of a LoRA.
    if "magnitude" in update.tensors and (update.kind != "dora" or scales_columns(update, unmerged.tensors)):
        return _stretched(unmerged)
    return _PATCHES[update.kind](unmerged)


def _lora(unmerged: UnmergedUpdate) -> ForwardPatch:
    down, up = unmerged.tensor("down"), unmerged.rows.select(unmerged.tensor("up"))
    scale, multiplier = scale_of(unmerged.update, unmerged.tensors), unmerged.multiplier

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        # In float32, rounded before the sum, as the trainer's module does.
        update = functional.linear(functional.linear(inputs.float(), down), up) * scale * multiplier
        return output + update.to(output.dtype)

    return patch


def _dora(unmerged: UnmergedUpdate) -> ForwardPatch:
    down, up = unmerged.tensor("down"), unmerged.rows.select(unmerged.tensor("up"))
    magnitude = unmerged.rows.select(unmerged.tensor("magnitude").flatten())
    scale, multiplier = scale_of(unmerged.update, unmerged.tensors), unmerged.multiplier

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        wide = inputs.float()
        update = functional.linear(functional.linear(wide, down), up) * scale * multiplier
        adapted = unmerged.rows.weight().float() + (up @ down) * scale * multiplier
        stretch = magnitude / torch.linalg.norm(adapted, dim=1) - 1
        turned = stretch * functional.linear(wide, adapted)
        total: Tensor = output + (update.to(output.dtype) + turned.to(output.dtype))
        return total

    return patch


def _stretched(unmerged: UnmergedUpdate) -> ForwardPatch:
    """Scale rows or columns of the sum of weight and update to their magnitudes."""
    update, held = unmerged.update, (unmerged.rows, *unmerged.others)

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        weights = [rows.weight() for rows in held]
        whole = dense_delta(update, unmerged.tensors, multiplier=unmerged.multiplier)
        delta = whole.split([rows.select for rows in held], olds=weights)[0]
        adapted = weights[0] + delta.values  # promoted to float32
        change = adapted.mul_(delta.stretch(adapted)).sub_(weights[0])
        return output + functional.linear(inputs.float(), change).to(output.dtype)

    return patch


def _loha(unmerged: UnmergedUpdate) -> ForwardPatch:
    w1_a, w1_b, w2_a, w2_b = (unmerged.tensor(role) for role in LOHA_FACTORS)
    w1_a, w2_a = unmerged.rows.select(w1_a), unmerged.rows.select(w2_a)
    scale, multiplier = scale_of(unmerged.update, unmerged.tensors), unmerged.multiplier
    rows, rank = w1_a.shape

    # Both are multiplied out in each pass: kept for all layers they would take gigabytes.
    def patch_with_factors(inputs: Tensor, output: Tensor) -> Tensor:
        # The elementwise product of two products is one product through every pair of their ranks.
        up = (w1_a.unsqueeze(2) * w2_a.unsqueeze(1)).flatten(1)
        down = (w1_b.unsqueeze(1) * w2_b.unsqueeze(0)).flatten(0, 1)
        update = functional.linear(functional.linear(inputs.float(), down), up) * scale * multiplier
        return output + update.to(output.dtype)

    def patch_with_product(inputs: Tensor, output: Tensor) -> Tensor:
        delta = loha_delta(w1_a, w1_b, w2_a, w2_b, scale=scale, multiplier=multiplier)
        return output + functional.linear(inputs.float(), delta).to(output.dtype)

    # For linear1 of FLUX.2 [dev] and rank 8: 1.2 % of the operations, and 16 MB instead of 2.7 GB.
    is_smaller = rank * rank * (rows + w1_b.shape[1]) < rows * w1_b.shape[1]
    return patch_with_factors if is_smaller else patch_with_product


def _fullrank(unmerged: UnmergedUpdate) -> ForwardPatch:
    delta, multiplier = unmerged.rows.select(unmerged.tensor("down")), unmerged.multiplier

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        return output + (functional.linear(inputs.float(), delta) * multiplier).to(output.dtype)

    return patch


def _diff(unmerged: UnmergedUpdate) -> ForwardPatch:
    delta = unmerged.rows.select(unmerged.tensor("diff")) * unmerged.multiplier

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        # The whole layer runs again: the trainer rounds the sum of weight and update before it multiplies.
        weight = unmerged.rows.weight()
        return functional.linear(inputs, weight + delta.to(weight.dtype))

    return patch


def _lokr(unmerged: UnmergedUpdate) -> ForwardPatch:
    update, tensors = unmerged.update, unmerged.tensors
    first, scale = lokr_factor("w1", update, tensors), scale_of(update, tensors)
    second = [unmerged.tensor(role) for role in ("w2", "w2_b", "w2_a") if role in update.tensors]
    blocks = first.shape[1]

    def patch(inputs: Tensor, output: Tensor) -> Tensor:
        # The trainer runs a LoKr in the layer's dtype, not in float32.
        dtype = output.dtype
        # kron(w1, w2) x, without the product: w2 on each block of x, then w1 across the blocks.
        turned = inputs.view(*inputs.shape[:-1], blocks, -1)
        for matrix in second:
            turned = torch.einsum("...qs,os->...qo", turned, matrix.to(dtype))
        delta = torch.einsum("...qo,pq->...po", turned, first.to(dtype) * scale).flatten(-2, -1)
        rows = unmerged.rows.select(delta.movedim(-1, 0)).movedim(0, -1)
        return output + rows * torch.tensor(unmerged.multiplier, dtype=dtype)

    return patch


_PATCHES: dict[str, Callable[[UnmergedUpdate], ForwardPatch]] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
    "fullrank": _fullrank,
    "diff": _diff,
}
