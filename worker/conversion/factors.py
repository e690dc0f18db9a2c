"""The factors of an adapter's updates, cut and put together by the rows of their layers.

Every operation here is exact: rows are copied, and a factor is at most multiplied by a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from shared.errors import AdapterRefused
from shared.layer_names import WHOLE, Rows
from worker.lora.merge import scale_of

_LOW_RANK = frozenset({"lora", "dora"})
#: Kinds that store one number, or one row of numbers, for each row of the layer.
_BY_ROWS = _LOW_RANK | {"diff", "fullrank"}
# The tensors of each kind with one row for each row of the layer.
_ROW_ROLES = {"lora": ("up",), "dora": ("up", "magnitude"), "diff": ("diff",), "fullrank": ("down",)}


@dataclass(frozen=True)
class Factors:
    """The update of some rows of one layer.

    Attributes:
        key: a key of the file, for messages.
        tensors: by role, as in `LayerUpdate`, without alpha.
        scale: factor of the update; alpha / rank of most files.
        rank: None if the kind has no rank.
    """

    key: str
    layer: str
    kind: str
    rows: Rows
    tensors: Mapping[str, Tensor]
    scale: float
    rank: int | None

    @property
    def has_rows(self) -> bool:
        """Whether the update can be cut by rows."""
        return self.kind in _BY_ROWS

    @property
    def scales_columns(self) -> bool:
        """Whether the update has a length for each column of the layer."""
        magnitude = self.tensors.get("magnitude")
        return magnitude is not None and magnitude.ndim == 2 and magnitude.shape[0] == 1


def read_factors(update: LayerUpdate, stored: Mapping[str, Tensor]) -> Factors:
    """Return the factors of one update of a file with these tensors."""
    tensors = {role: stored[key] for role, key in update.tensors.items() if role != "alpha"}
    return Factors(
        key=update.tensors[next(iter(tensors))],
        layer=update.layer,
        kind=update.kind,
        rows=update.rows,
        tensors=tensors,
        scale=scale_of(update, stored),
        rank=update.rank,
    )


def fold_scale(factors: Factors) -> Factors:
    """Return factors with scale 1, if a factor times the scale is exact; otherwise return `factors`."""
    mantissa, _ = math.frexp(factors.scale)
    if factors.scale == 1 or mantissa != 0.5 or factors.kind not in _LOW_RANK:
        return factors
    for role in ("up", "down"):
        exact = factors.tensors[role].double() * factors.scale
        scaled = exact.to(factors.tensors[role].dtype)
        # A power of two changes only the exponent, which may end in float16 and float8.
        if torch.equal(scaled.double(), exact):
            return replace(factors, tensors={**factors.tensors, role: scaled}, scale=1.0)
    return factors


def select_rows(factors: Factors, rows: Rows) -> Factors:
    """Return the update of some rows of a whole layer."""

    def select(tensor: Tensor) -> Tensor:
        parts = tensor.chunk(rows.part_count)
        return torch.cat([parts[index] for index in rows.parts])

    cut = {role: select(factors.tensors[role]) for role in _ROW_ROLES[factors.kind]}
    # A copy for each part: safetensors stores no tensor under two names.
    tensors = {role: tensor.clone() for role, tensor in factors.tensors.items()}
    return replace(factors, rows=rows, tensors=tensors | cut)


def fuse_rows(parts: Sequence[Factors]) -> Factors:
    """Return one update of a whole layer from the updates of its parts.

    Parts with the same lora_A keep it. Other parts keep theirs under each other, so that the rank of the whole is the
    sum of their ranks, and each lora_B stands in its own columns between zeros. Rows without an update get zeros.

    Raises:
        AdapterRefused: no single update of the same kind has the same bits.
    """
    first = parts[0]
    if first.rows == WHOLE and len(parts) == 1:
        return first
    if not all(part.has_rows and part.kind == first.kind for part in parts):
        raise AdapterRefused(
            f"{first.key!r}: the file updates parts of {first.layer} apart, and such updates of the kind "
            f"{first.kind!r} cannot be written as one of the whole layer"
        )
    if len({part.scale for part in parts}) > 1:
        raise AdapterRefused(
            f"{first.key!r}: the parts of {first.layer} have the scales {[part.scale for part in parts]}, and one "
            "update of the whole layer has one scale"
        )
    covered = sum(len(part.rows.parts) for part in parts)
    if first.kind == "dora" and covered < first.rows.part_count:
        raise AdapterRefused(f"{first.key!r}: the DoRA has no magnitude for the other rows of {first.layer}")
    parts = _in_one_dtype(parts)
    if first.kind in _LOW_RANK and not _share_down(parts):
        return _fuse_blocks(parts)
    return _stack(parts)


def _in_one_dtype(parts: Sequence[Factors]) -> Sequence[Factors]:
    dtypes = {tensor.dtype for part in parts for tensor in part.tensors.values()}
    if len(dtypes) == 1:
        return parts
    # Exact: every float of a LoRA is a float32, except float64, which no trainer writes and no merge keeps.
    return [replace(part, tensors={role: tensor.float() for role, tensor in part.tensors.items()}) for part in parts]


def _share_down(parts: Sequence[Factors]) -> bool:
    # As bytes: torch compares no float8 values.
    first, *others = (part.tensors["down"] for part in parts)
    return all(
        other.shape == first.shape and torch.equal(other.view(torch.uint8), first.view(torch.uint8)) for other in others
    )


def _stack(parts: Sequence[Factors]) -> Factors:
    """Put the rows of all parts into their places; rows without an update become zeros."""
    first = parts[0]
    whole = dict(first.tensors)
    for role in _ROW_ROLES[first.kind]:
        pieces: dict[int, Tensor] = {}
        for part in parts:
            pieces |= zip(part.rows.parts, part.tensors[role].chunk(len(part.rows.parts)), strict=True)
        missing = torch.zeros_like(next(iter(pieces.values())))
        whole[role] = torch.cat([pieces.get(index, missing) for index in range(first.rows.part_count)])
    return replace(first, rows=WHOLE, tensors=whole)


def _fuse_blocks(parts: Sequence[Factors]) -> Factors:
    rank = sum(part.tensors["down"].shape[0] for part in parts)
    down = torch.cat([part.tensors["down"] for part in parts])
    wide = []
    start = 0
    for part in parts:
        up = part.tensors["up"]
        padded = up.new_zeros((up.shape[0], rank))
        padded[:, start : start + up.shape[1]] = up
        start += up.shape[1]
        wide.append(replace(part, tensors={**part.tensors, "up": padded, "down": down}, rank=rank))
    if not all(_has_same_product(part, wide_part, down) for part, wide_part in zip(parts, wide, strict=True)):
        raise AdapterRefused(
            f"{parts[0].key!r}: the parts of {parts[0].layer} have factors of their own, and a product of rank {rank} "
            "rounds differently from theirs"
        )
    return _stack(wide)


def _has_same_product(part: Factors, wide: Factors, down: Tensor) -> bool:
    """Whether zeros in between change no bit of the product; libraries add up long sums in pieces."""
    alone = part.tensors["up"].float() @ part.tensors["down"].float()
    fused = wide.tensors["up"].float() @ down.float()
    return torch.equal(alone.view(torch.int32), fused.view(torch.int32))
