"""Merge an adapter's update into the weight of its layer.

A merged adapter costs nothing in a denoising step, but only one list of adapters can be merged at a time:
`worker.lora.hot_swap` decides which. This module only does the arithmetic, in float32 and in the trainer's order of
operations, so that merged weights equal the trainer's to the bit. Each kind of adapter is one function in `_DELTAS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from worker.kernels.low_rank import add_low_rank

#: Picks rows of a tensor whose first dimension is the rows of an update.
RowSelection = Callable[[Tensor], Tensor]

#: Bit of a verdict on merged weights: a row of a DoRA has no length that could be scaled to its magnitude.
NO_DIRECTION = 2

#: Roles of a LoHa's factors, in the order of `loha_delta`.
LOHA_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@dataclass(frozen=True)
class DenseDelta:
    """An update of rows of a weight W, in float32.

    Attributes:
        values: (rows, in). Without a magnitude, W becomes W + values.
        magnitude: (rows,), the length that each row of W + values is scaled to; or (1, in), that of each column.
        column_lengths: (1, in), the lengths of the columns of W + values over all rows of the update; measured by
            `split` if the magnitudes are of columns.
    """

    values: Tensor
    magnitude: Tensor | None = None
    column_lengths: Tensor | None = None

    def split(self, selects: Sequence[RowSelection], *, olds: Sequence[Tensor]) -> list[DenseDelta]:
        """Return the update of each part of the rows.

        Args:
            selects: pick the parts; together they pick all rows.
            olds: the weight of each part before the merge.
        """
        parts = [self.select_rows(select) for select in selects]
        if not self.scales_columns:
            return parts
        columns = [torch.linalg.norm(old + part.values, dim=0) for part, old in zip(parts, olds, strict=True)]
        lengths = torch.linalg.norm(torch.stack(columns), dim=0, keepdim=True)
        return [replace(part, column_lengths=lengths) for part in parts]

    def select_rows(self, select: RowSelection) -> DenseDelta:
        """Return the update of the rows that `select` picks."""
        if self.magnitude is None or self.scales_columns:
            return replace(self, values=select(self.values))
        # Exact, because no row depends on another: each is scaled by its own length.
        return replace(self, values=select(self.values), magnitude=select(self.magnitude))

    @property
    def scales_columns(self) -> bool:
        """Whether the magnitudes are of columns."""
        return self.magnitude is not None and self.magnitude.ndim == 2

    def stretch(self, merged: Tensor) -> Tensor:
        """Return the factors that scale W + values, `merged`, to the magnitudes: (rows, 1), or (1, in) for columns.

        Source:
            apply_weight_decompose in LyCORIS' lycoris/modules/; DoRAModule and LoKrModule in OneTrainer's
            modules/module/LoRAModule.py
        """
        assert self.magnitude is not None
        if not self.scales_columns:
            return row_scales(merged, self.magnitude)
        assert self.column_lengths is not None
        # LyCORIS adds this number, and so does OneTrainer for a LoKr: a column of zeros stays zero.
        return self.magnitude / (self.column_lengths + torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class LowRankDelta:
    """An update of a LoRA in its factors, which the kernel of `worker.kernels.low_rank` multiplies.

    See `lora_delta` for the attributes.
    """

    down: Tensor
    up: Tensor
    scale: float
    multiplier: float

    def split(self, selects: Sequence[RowSelection], *, olds: Sequence[Tensor]) -> list[LowRankDelta]:
        """Return the update of each part of the rows; see `DenseDelta.split`."""
        return [replace(self, up=select(self.up)) for select in selects]


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


def loha_delta(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, *, scale: float, multiplier: float) -> Tensor:
    """Return ``(w1_a @ w1_b) * (w2_a @ w2_b) * scale * multiplier``, multiplied in this order as LyCORIS does.

    Args:
        w1_a: (out, rank); `w2_a` likewise.
        w1_b: (rank, in); `w2_b` likewise.
        scale: alpha / rank; 1 when the file has no alpha.

    Returns:
        (out, in), float32; its rank is up to the square of the factors'.

    Source:
        Hyeon-Woo et al. 2021, "FedPara", equation 2, https://arxiv.org/abs/2108.06098
    """
    product = (w1_a.float() @ w1_b.float()).mul_(w2_a.float() @ w2_b.float())
    return product.mul_(scale).mul_(multiplier)


def weight_delta(
    update: LayerUpdate, tensors: Mapping[str, Tensor], *, multiplier: float, factored: bool = False
) -> DenseDelta | LowRankDelta:
    """Return the change of a layer's rows.

    Args:
        tensors: the adapter file's tensors, by key, on the device that computes.
        multiplier: must not be 0: a DoRA would still scale the rows to its magnitudes.
        factored: keep a LoRA in its factors; see `worker.kernels.low_rank.can_add_low_rank`.
    """
    if update.kind == "lora" and factored:
        down, up = (tensors[update.tensors[role]] for role in ("down", "up"))
        return LowRankDelta(down, up, scale_of(update, tensors), multiplier)
    return dense_delta(update, tensors, multiplier=multiplier)


def dense_delta(update: LayerUpdate, tensors: Mapping[str, Tensor], *, multiplier: float) -> DenseDelta:
    """Return the change of a layer's rows, multiplied out; see `weight_delta`."""
    values = _DELTAS[update.kind](update, tensors, multiplier)
    if "magnitude" not in update.tensors:
        return DenseDelta(values)
    magnitude = tensors[update.tensors["magnitude"]].float()
    # Some trainers store the rows' lengths as a column.
    return DenseDelta(values, magnitude if scales_columns(update, tensors) else magnitude.flatten())


def scales_columns(update: LayerUpdate, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the update has a length for each column, (1, in), instead of one for each row."""
    magnitude = update.tensors.get("magnitude")
    return magnitude is not None and tensors[magnitude].shape == (1, update.shape[1])


@torch.no_grad()
def write_merged(weight: Tensor, delta: DenseDelta | LowRankDelta, *, old: Tensor, non_finite: Tensor) -> None:
    """Write the sum of `old` and an update to `weight`: computed in float32, rounded once to the weight's dtype.

    Args:
        old: same shape and dtype as `weight`; may be `weight` itself.
        non_finite: int32, one value on the weight's device; set to 1 if any written value is not finite,
            plus `NO_DIRECTION` if the reason is a row of zeros.
    """
    if isinstance(delta, LowRankDelta):
        add_low_rank(
            weight, delta.down, delta.up, old=old, multiplier=delta.multiplier, scale=delta.scale,
            non_finite=non_finite,
        )  # fmt: skip
        return
    # The update is float32, so the sum is rounded only once, by the copy into the weight.
    merged = old + delta.values  # promoted to float32 without a float32 copy of the weight
    if delta.magnitude is not None:
        stretch = delta.stretch(merged)
        non_finite |= NO_DIRECTION * (~stretch.isfinite().all()).int()
        merged *= stretch
    weight.copy_(merged)
    # The verdict stays on the device: the caller reads those of all layers with one transfer.
    non_finite |= ~weight.isfinite().all()


def row_scales(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return the factors, (rows, 1), that scale each row of `weight` to its length in `magnitude`.

    A row of zeros has no direction: its factor is infinite or NaN.

    Source:
        Liu et al. 2024, "DoRA", equation 5, https://arxiv.org/abs/2402.09353
    """
    lengths: Tensor = torch.linalg.norm(weight, dim=1)
    return (magnitude / lengths).unsqueeze(1)


def scale_of(update: LayerUpdate, tensors: Mapping[str, Tensor]) -> float:
    """Return alpha / rank from the update's alpha tensor, or the scale that the file's metadata gives.

    Two full LoKr factors have no alpha (see `LayerUpdate.ignored`).
    """
    alpha = update.tensors.get("alpha")
    if alpha is not None and update.rank is not None:
        return tensors[alpha].item() / update.rank
    return 1.0 if update.strength.scale is None else update.strength.scale


def lokr_factor(name: str, update: LayerUpdate, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a LoKr's factor `w1` or `w2` in float32; a factor that is stored as a product is multiplied out."""
    roles = update.tensors
    if name in roles:
        return tensors[roles[name]].float()
    return tensors[roles[f"{name}_a"]].float() @ tensors[roles[f"{name}_b"]].float()


def _lora(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    down, up = (tensors[update.tensors[role]] for role in ("down", "up"))
    return lora_delta(down, up, scale=scale_of(update, tensors), multiplier=multiplier)


def _lokr(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    w1, w2 = (lokr_factor(name, update, tensors) for name in ("w1", "w2"))
    return lokr_delta(w1, w2, scale=scale_of(update, tensors), multiplier=multiplier)


def _loha(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    factors = (tensors[update.tensors[role]] for role in LOHA_FACTORS)
    return loha_delta(*factors, scale=scale_of(update, tensors), multiplier=multiplier)


def _full(update: LayerUpdate, tensors: Mapping[str, Tensor], multiplier: float) -> Tensor:
    (key,) = update.tensors.values()
    return tensors[key].float() * multiplier


_DELTAS: dict[str, Callable[[LayerUpdate, Mapping[str, Tensor], float], Tensor]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "fullrank": _full,
    "diff": _full,
}
