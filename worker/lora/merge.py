"""Fold an adapter's update into the weight it belongs to.

A merged adapter costs nothing per denoising step, but only one list of adapters can be merged at a time:
`worker.pipeline.cache` decides which; this module only does the arithmetic. A kind of adapter is one entry of
`_DELTAS` and one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shared.adapters.layout import LayerUpdate
from shared.errors import AdapterRefused


def lora_delta(down: Tensor, up: Tensor, *, alpha: float, multiplier: float) -> Tensor:
    """Return ``multiplier * up @ down * (alpha / rank)``, multiplied in this order as the trainer does.

    Args:
        down: (rank, in), stored as ``lora_A``.
        up: (out, rank), stored as ``lora_B``.
        alpha: trained scale; equal to rank when the file has none.
        multiplier: the job's strength, no unit; 0 is the base model, 1 as trained.

    Returns:
        (out, in), float32: in bfloat16 small updates would round away before they are added.

    Source:
        Hu et al. 2021, "LoRA", section 4.1, https://arxiv.org/abs/2106.09685
    """
    rank = down.shape[0]
    return (up.float() @ down.float()).mul_(multiplier).mul_(alpha / rank)


def layer_delta(update: LayerUpdate, tensors: Mapping[str, Tensor], *, multiplier: float) -> Tensor:
    """Return what an update adds to its layer's weight, (out, in) in float32.

    Args:
        tensors: the adapter file's, by key, on the device that computes.
    """
    return _DELTAS[update.kind](update, tensors, multiplier)


@torch.no_grad()
def add(weight: Tensor, delta: Tensor, *, layer: str) -> None:
    """Add `delta`, which is float32, to `weight` in place: in float32, rounded once to the weight's dtype.

    A delta of zeros is not added: 0.0 + -0.0 would flip the sign bit of weights that the adapter leaves alone.

    Raises:
        AdapterRefused: the sum is not finite; names `layer`, and `weight` is untouched.
    """
    if not delta.any():
        return
    merged = (weight + delta).to(weight.dtype)  # promoted to float32 without a float32 copy of the weight
    if not merged.isfinite().all():
        raise AdapterRefused(f"{layer}: the adapter's values are so large that the merged weight is not finite")
    weight.copy_(merged)


def _lora(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    roles = update.tensors
    alpha = tensors[roles["alpha"]].item() if "alpha" in roles else update.rank
    return lora_delta(tensors[roles["down"]], tensors[roles["up"]], alpha=alpha, multiplier=multiplier)


_DELTAS: dict[str, Callable[[LayerUpdate, Mapping[str, Tensor], float], Tensor]] = {"lora": _lora}
