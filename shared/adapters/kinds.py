"""Recognise the kind of update that the tensors of one layer form, from their names and shapes.

Each kind has one function, and `_parser_for` picks it by the roles that are present. `LayerUpdate` documents the roles
and their shapes; `worker.lora.merge` does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.adapters.header_json import Header
from shared.adapters.strength import Strength
from shared.adapters.suffixes import describe_missing_half
from shared.errors import AdapterRefused
from shared.layer_names import WHOLE, Rows, Target

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_INTEGER_DTYPES = frozenset({"I64", "I32"})
# More than any layer of FLUX.2 [dev] can use: its hidden size is 6144.
MAX_RANK = 16_384

_LORA = {"down", "up"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR = {"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"}


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one linear layer, or of some of its rows.

    Attributes:
        layer: Black Forest Labs' module path without `.weight`, e.g. `double_blocks.0.img_attn.qkv`.
        kind: determines the roles in `tensors`, for an update of shape (out, in):
            `lora`: `down` (rank, in), `up` (out, rank); optional scalar `alpha`.
            `dora`: the roles of `lora`, and `magnitude`.
            `loha`: `hada_w1_a` (out, rank), `hada_w1_b` (rank, in), and `hada_w2_a`, `hada_w2_b` of the same shapes;
            optional scalar `alpha` and `magnitude`.
            `lokr`: `w1` (a, b) and `w2` (c, d) with a*c = out and b*d = in, each either whole or a product of `_a` and
            `_b` through a rank; optional scalar `alpha` if there is a rank, optional `magnitude`.
            `fullrank`: `down` (out, in), as AI Toolkit's network of that name stores it. `diff`: `diff` (out, in).
            A `magnitude` of shape (out,) or (out, 1) is the length of each row, one of shape (1, in) that of each
            column.
        tensors: key in the file, by role.
        shape: (out, in) of the rows that the update fits.
        rank: None if the kind has no rank.
        rows: rows of the layer that change; a diffusers name may cover only a third of qkv.
        ignored: keys without effect: LoKr's alpha between two full factors.
        strength: the factor of the update; from an alpha tensor or the file's metadata.
    """

    layer: str
    kind: str
    tensors: dict[str, str]
    shape: tuple[int, int]
    rank: int | None
    rows: Rows = WHOLE
    ignored: tuple[str, ...] = ()
    strength: Strength = Strength()  # noqa: RUF009 - frozen


@dataclass
class TensorGroup:
    """The tensors under one module name, by role.

    Attributes:
        module: the layer's name as the file's tool knows it, without its prefix; PEFT's patterns match it.
    """

    target: Target
    module: str = ""
    tensors: dict[str, str] = field(default_factory=dict)

    def shape(self, role: str, header: Header) -> tuple[int, int]:
        """Return the two sizes of the matrix with that role; refuse a tensor of another shape."""
        shape = header.tensors[self.tensors[role]].shape
        if len(shape) != 2 or 0 in shape:
            raise AdapterRefused(f"{self.tensors[role]!r} has shape {list(shape)}, not two sizes of 1 or more")
        return shape[0], shape[1]

    def update(self, kind: str, shape: tuple[int, int], *, rank: int | None) -> LayerUpdate:
        if rank is not None and rank > MAX_RANK:
            raise AdapterRefused(f"{next(iter(self.tensors.values()))!r} has rank {rank}, and the limit is {MAX_RANK}")
        return LayerUpdate(self.target.layer, kind, dict(self.tensors), shape, rank, self.target.rows)


def parse_update(group: TensorGroup, header: Header) -> LayerUpdate:
    """Return the update that one layer's tensors form.

    Raises:
        AdapterRefused: the tensors are incomplete, contradict each other or mix kinds; the message names a key.
    """
    for role, key in group.tensors.items():
        # Tools that take alpha for the rank store it as they count the rank.
        allowed = FLOAT_DTYPES | _INTEGER_DTYPES if role == "alpha" else FLOAT_DTYPES
        if header.tensors[key].dtype not in allowed:
            raise AdapterRefused(f"{key!r} holds {header.tensors[key].dtype} values, not floating point")
    alpha = group.tensors.get("alpha")
    # Trainers store alpha as a scalar or as a list of one number.
    if alpha is not None and header.tensors[alpha].shape not in ((), (1,)):
        raise AdapterRefused(f"{alpha!r} has shape {list(header.tensors[alpha].shape)}, not a single number")
    update = _parser_for(group)(group, header)
    _check_magnitude(update, header)
    return update


def _parser_for(group: TensorGroup) -> Callable[[TensorGroup, Header], LayerUpdate]:
    roles = group.tensors.keys() - {"alpha", "magnitude"}
    families = [family for family in (_LORA, _LOKR, _LOHA, {"diff"}) if roles & family]
    if "magnitude" in group.tensors and families in ([], [{"diff"}]):
        raise AdapterRefused(f"{group.tensors['magnitude']!r} is a DoRA magnitude without its LoRA")
    if not families:
        raise AdapterRefused(
            f"{group.tensors['alpha']!r} scales nothing: its layer has no lora_A and lora_B, nor another update"
        )
    if len(families) > 1:
        first, second = (next(key for role, key in group.tensors.items() if role in family) for family in families[:2])
        raise AdapterRefused(f"{first!r} and {second!r} are of two kinds; a layer takes updates of one kind")
    if families[0] is _LOKR:
        return _lokr
    if families[0] is _LOHA:
        return _loha
    if "diff" in roles:
        return _diff
    # AI Toolkit's full-rank network stores the whole update as lora_A.
    return _fullrank if roles == {"down"} and "magnitude" not in group.tensors else _lora


def _lora(group: TensorGroup, header: Header) -> LayerUpdate:
    """Read a LoRA, or a DoRA if there is a magnitude."""
    for role, other in (("down", "up"), ("up", "down")):
        if role not in group.tensors:
            raise AdapterRefused(describe_missing_half(group.tensors[other]))
    down, up = group.shape("down", header), group.shape("up", header)
    if down[0] != up[1]:
        raise AdapterRefused(
            f"{group.tensors['up']!r} has shape {list(up)} and {group.tensors['down']!r} has {list(down)}: "
            f"ranks {up[1]} and {down[0]} differ"
        )
    return group.update("dora" if "magnitude" in group.tensors else "lora", (up[0], down[1]), rank=down[0])


def _check_magnitude(update: LayerUpdate, header: Header) -> None:
    """Refuse a magnitude that is not one number for each row or column of the update."""
    key = update.tensors.get("magnitude")
    if key is None:
        return
    (out, features), shape = update.shape, header.tensors[key].shape
    # OneTrainer's default is a length for each column, and LyCORIS' with `wd_on_out=False`. Other tools have none.
    columns = ((1, features),) if key.endswith(".dora_scale") else ()
    if shape not in ((out,), (out, 1), *columns):
        wanted = f"{out} rows" + (f" or {features} columns" if columns else "")
        raise AdapterRefused(f"{key!r} has shape {list(shape)}, not one number for each of {wanted}")


def _fullrank(group: TensorGroup, header: Header) -> LayerUpdate:
    """Read a lora_A without a lora_B as a full-rank update."""
    # `check_fits_base` refuses it as half a LoRA if its shape is not the layer's.
    _refuse_alpha(group)
    return group.update("fullrank", group.shape("down", header), rank=None)


def _diff(group: TensorGroup, header: Header) -> LayerUpdate:
    _refuse_alpha(group)
    return group.update("diff", group.shape("diff", header), rank=None)


def _refuse_alpha(group: TensorGroup) -> None:
    if "alpha" in group.tensors:
        other = next(key for role, key in group.tensors.items() if role != "alpha")
        reason = describe_missing_half(other) if "down" in group.tensors else f"{other!r} has no rank"
        raise AdapterRefused(f"{reason}, so {group.tensors['alpha']!r} scales nothing")


def _lokr(group: TensorGroup, header: Header) -> LayerUpdate:
    (a, b), first = _factor("w1", group, header)
    (c, d), second = _factor("w2", group, header)
    if first is not None and second is not None and first != second:
        raise AdapterRefused(
            f"{group.tensors['w1_b']!r} has rank {first} and {group.tensors['w2_b']!r} has rank {second}, but a LoKr "
            "has one rank"
        )
    rank = second if first is None else first
    update = group.update("lokr", (a * c, b * d), rank=rank)
    alpha = update.tensors.get("alpha")
    if rank is not None or alpha is None:
        return update
    # Without a rank there is nothing to divide alpha by. Trainers write 1e10 or infinity, which would ruin the image.
    used = {role: key for role, key in update.tensors.items() if role != "alpha"}
    return replace(update, tensors=used, ignored=(alpha,))


def _loha(group: TensorGroup, header: Header) -> LayerUpdate:
    for role in sorted(_LOHA):
        if role not in group.tensors:
            other = next(iter(group.tensors.values()))
            raise AdapterRefused(f"{other!r}: its layer has no {role}; a LoHa has {', '.join(sorted(_LOHA))}")
    products = [(group.shape(f"{name}_a", header), group.shape(f"{name}_b", header)) for name in ("hada_w1", "hada_w2")]
    ranks = {left[1] for left, _ in products} | {right[0] for _, right in products}
    shapes = {(left[0], right[1]) for left, right in products}
    if len(ranks) > 1 or len(shapes) > 1:
        shown = ", ".join(f"{role} {list(group.shape(role, header))}" for role in sorted(_LOHA))
        raise AdapterRefused(
            f"{group.tensors['hada_w1_a']!r}: the LoHa's four factors do not fit each other: {shown}; they have one "
            "rank, and both products have the layer's shape"
        )
    return group.update("loha", shapes.pop(), rank=ranks.pop())


def _factor(name: str, group: TensorGroup, header: Header) -> tuple[tuple[int, int], int | None]:
    """Return the shape of one Kronecker factor, and its rank if it is stored as a product."""
    present = [role for role in (name, f"{name}_a", f"{name}_b") if role in group.tensors]
    if present == [name]:
        return group.shape(name, header), None
    if present != [f"{name}_a", f"{name}_b"]:
        at_fault = group.tensors[present[0]] if present else next(iter(group.tensors.values()))
        names = ", ".join(f"lokr_{role}" for role in present) or f"no lokr_{name}"
        raise AdapterRefused(
            f"{at_fault!r}: its layer has {names}; it takes lokr_{name}, or lokr_{name}_a and lokr_{name}_b"
        )
    left, right = group.shape(f"{name}_a", header), group.shape(f"{name}_b", header)
    if left[1] != right[0]:
        raise AdapterRefused(
            f"{group.tensors[f'{name}_a']!r} has shape {list(left)} and {group.tensors[f'{name}_b']!r} has "
            f"{list(right)}: ranks {left[1]} and {right[0]} differ"
        )
    return (left[0], right[1]), left[1]
