"""Fold an adapter's update into the weight it belongs to.

A merged adapter costs nothing per denoising step, but only one list of adapters can be merged at a time:
`worker.lora.hot_swap` decides which; this module only does the arithmetic, in float32 and in the trainer's order of
operations, so that merged weights equal its own to the bit. A kind of adapter is one entry of `_DELTAS` and one
function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from worker.kernels.low_rank import add_low_rank


@dataclass(frozen=True)
class Change:
    """What an update does to rows of a weight W, in float32.

    Attributes:
        delta: (rows, in). Without a magnitude, W becomes W + delta.
        magnitude: (rows,), DoRA's: each row of W + delta is brought to this length.
    """

    delta: Tensor
    magnitude: Tensor | None = None

    def take(self, pick: Callable[[Tensor], Tensor]) -> Change:
        """Apply `pick`, which chooses rows, to both; exact, since every row changes by itself."""
        return Change(pick(self.delta), None if self.magnitude is None else pick(self.magnitude))


@dataclass(frozen=True)
class LowRank:
    """The same for a LoRA whose delta is not made: see `lora_delta` for its parts."""

    down: Tensor
    up: Tensor
    scale: float
    multiplier: float

    def take(self, pick: Callable[[Tensor], Tensor]) -> LowRank:
        """Apply `pick`, which chooses rows."""
        return replace(self, up=pick(self.up))


def lora_delta(down: Tensor, up: Tensor, *, scale: float, multiplier: float) -> Tensor:
    """Return ``multiplier * up @ down * scale``, multiplied in this order as the trainer does.

    Args:
        down: (rank, in), stored as ``lora_A``.
        up: (out, rank), stored as ``lora_B``.
        scale: alpha / rank; 1 when the file has no alpha.
        multiplier: the job's strength, no unit; 0 is the base model, 1 as trained.

    Returns:
        (out, in), float32: in bfloat16 small updates would round away before they are added.

    Source:
        Hu et al. 2021, "LoRA", section 4.1, https://arxiv.org/abs/2106.09685
    """
    return (up.float() @ down.float()).mul_(multiplier).mul_(scale)


def lokr_delta(w1: Tensor, w2: Tensor, *, scale: float, multiplier: float) -> Tensor:
    """Return ``kron(w1, w2) * scale * multiplier``, multiplied in this order as the trainer does.

    Args:
        w1: (a, b), float32.
        w2: (c, d), float32; a copy of it, times an entry of w1, fills each of the a by b blocks.
        scale: alpha / rank where a factor has a rank, or else 1.

    Returns:
        (a * c, b * d), float32.

    Source:
        Yeh et al. 2023, "Navigating Text-To-Image Customization", section 3.3, https://arxiv.org/abs/2309.14859
    """
    return torch.kron(w1, w2).mul_(scale).mul_(multiplier)


def weight_delta(
    update: LayerUpdate, tensors: Mapping[str, Tensor], *, multiplier: float, in_parts: bool = False
) -> Change | LowRank:
    """Return what an update does to its rows.

    Args:
        tensors: the adapter file's, by key, on the device that computes.
        multiplier: not 0, at which the caller leaves the weight alone: DoRA's rows would still take its magnitudes.
        in_parts: whether every weight suits `worker.kernels.low_rank`, which takes a LoRA in its parts.
    """
    if update.kind == "lora" and in_parts:
        down, up = (tensors[update.tensors[role]] for role in ("down", "up"))
        return LowRank(down, up, scale_of(update, tensors), multiplier)
    magnitude = update.tensors.get("magnitude")
    return Change(
        _DELTAS[update.kind](update, tensors, multiplier), None if magnitude is None else tensors[magnitude].float()
    )


@torch.no_grad()
def write(weight: Tensor, change: Change | LowRank, *, old: Tensor, broken: Tensor) -> None:
    """Make `weight` what a change makes of `old`: in float32, rounded once to the weight's dtype.

    Args:
        old: like `weight`, or itself.
        broken: int32, one value on the weight's device; becomes 1 unless all of it is finite. The caller reads those of
            all layers at once.
    """
    if isinstance(change, LowRank):
        add_low_rank(
            weight, change.down, change.up, old=old, multiplier=change.multiplier, scale=change.scale, broken=broken
        )
        return
    merged = old + change.delta  # promoted to float32 without a float32 copy of the weight
    if change.magnitude is not None:
        merged *= row_scales(merged, change.magnitude)
    weight.copy_(merged)
    broken |= ~weight.isfinite().all()


def row_scales(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return the factors, (rows, 1), that bring each row of `weight` to its length in `magnitude`.

    A row of zeros has no direction: its factor is infinite or NaN.

    Source:
        Liu et al. 2024, "DoRA", equation 5, https://arxiv.org/abs/2402.09353
    """
    lengths: Tensor = torch.linalg.norm(weight, dim=1)
    return (magnitude / lengths).unsqueeze(1)


def scale_of(update: LayerUpdate, tensors: Mapping[str, Tensor]) -> float:
    """Return alpha / rank; 1 without an alpha, as between two full factors of a LoKr (see `LayerUpdate.ignored`)."""
    alpha = update.tensors.get("alpha")
    return 1.0 if alpha is None or update.rank is None else tensors[alpha].item() / update.rank


def factor(name: str, update: LayerUpdate, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a LoKr's factor `w1` or `w2` in float32, multiplied out if it is stored as a product."""
    roles = update.tensors
    if name in roles:
        return tensors[roles[name]].float()
    return tensors[roles[f"{name}_a"]].float() @ tensors[roles[f"{name}_b"]].float()


def _lora(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    down, up = (tensors[update.tensors[role]] for role in ("down", "up"))
    return lora_delta(down, up, scale=scale_of(update, tensors), multiplier=multiplier)


def _lokr(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    w1, w2 = (factor(name, update, tensors) for name in ("w1", "w2"))
    return lokr_delta(w1, w2, scale=scale_of(update, tensors), multiplier=multiplier)


def _whole(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    (key,) = update.tensors.values()
    return tensors[key].float() * multiplier


_DELTAS: dict[str, Callable[[LayerUpdate, Mapping[str, Tensor], float], Tensor]] = {
    "lora": _lora,
    "dora": _lora,
    "lokr": _lokr,
    "fullrank": _whole,
    "diff": _whole,
}
