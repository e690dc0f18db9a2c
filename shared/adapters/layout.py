"""Say which layers an adapter file updates and how, from its header alone.

Everything here is refused or understood; nothing is skipped, because a skipped tensor gives a base-model image that
looks like a result. A kind of adapter is one entry of `_KINDS` and one function; `_FOREIGN` only gives names to what
is refused. The arithmetic belongs to the worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shared.adapters.header import Header
from shared.errors import AdapterMismatch, AdapterRefused

PREFIX = "diffusion_model."
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# Wider than any layer of FLUX.2 [dev] has use for (hidden size 6144).
MAX_RANK = 16_384


@dataclass(frozen=True)
class LayerUpdate:
    """What the file does to one linear layer.

    Attributes:
        layer: Black Forest Labs' module path without `.weight`, e.g. `double_blocks.0.img_attn.qkv`.
        kind: e.g. `lora`.
        tensors: role to key in the file; for `lora`: `down` (rank, in), `up` (out, rank), optional scalar `alpha`.
        shape: (out, in) of the weight that the update fits.
    """

    layer: str
    kind: str
    tensors: dict[str, str]
    shape: tuple[int, int]
    rank: int


@dataclass(frozen=True)
class AdapterLayout:
    """A whole file; `updates` are in the order in which the file first names each layer."""

    kind: str
    updates: tuple[LayerUpdate, ...]
    metadata: dict[str, str]


@dataclass
class _Group:
    """The tensors of one layer, by role."""

    layer: str
    kind: str | None = None
    tensors: dict[str, str] = field(default_factory=dict)


def describe(header: Header) -> AdapterLayout:
    """Group the file's tensors by layer.

    Raises:
        AdapterRefused: a tensor is not part of a supported update of a FLUX.2 layer; the message names its key.
    """
    if not header.tensors:
        raise AdapterRefused("the file holds no tensors, so it matches no layer")
    groups: dict[str, _Group] = {}
    for key in header.tensors:
        layer, suffix = _split(key)
        kind, role = _SUFFIXES[suffix]
        group = groups.setdefault(layer, _Group(layer))
        group.kind = group.kind or kind
        group.tensors[role] = key
    updates = tuple(_update(group, header) for group in groups.values())
    kinds = sorted({update.kind for update in updates})
    return AdapterLayout("+".join(kinds), updates, dict(header.metadata))


def check_base(layout: AdapterLayout, *, model: str) -> None:
    """Hold the file to the base model that it says it was trained on, if it says so.

    Raises:
        AdapterRefused: `ss_base_model_version` names another model than `model`.
    """
    trained_on = layout.metadata.get("ss_base_model_version")
    if trained_on and trained_on != model:
        raise AdapterRefused(f"the adapter was trained on {trained_on!r} (ss_base_model_version), not on {model!r}")


def check_fits(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]], *, model: str) -> None:
    """Hold every update to a layer of the base model.

    Args:
        layers: (out, in) of each linear layer of the base, by module path without `.weight`.
        model: id in the catalogue, e.g. `flux2`.

    Raises:
        AdapterRefused: another base model, or layers that this one does not have.
        AdapterMismatch: an update has another shape than its layer.
    """
    check_base(layout, model=model)
    missing = [update for update in layout.updates if update.layer not in layers]
    if len(missing) == len(layout.updates):
        raise AdapterRefused(f"the adapter matches no layer of {model}; the first key is {_first_key(missing[0])!r}")
    if missing:
        raise AdapterRefused(
            f"{_first_key(missing[0])!r} names a layer that {model} does not have; "
            f"so do {len(missing)} of the adapter's {len(layout.updates)} layers"
        )
    for update in layout.updates:
        if layers[update.layer] != update.shape:
            raise AdapterMismatch(update.layer, tuple(layers[update.layer]), update.shape)


def _first_key(update: LayerUpdate) -> str:
    return next(iter(update.tensors.values()))


def _split(key: str) -> tuple[str, str]:
    """Return the FLUX.2 layer and the suffix of a supported key."""
    suffix = next((known for known in _SUFFIXES if key.endswith(known)), None)
    if suffix is None or not key.startswith(PREFIX):
        what = next((name for pattern, name in _FOREIGN if re.search(pattern, key)), "not a tensor of an adapter")
        raise AdapterRefused(
            f"{key!r} is {what}; this version merges standard LoRA (lora_A/lora_B under {PREFIX!r}) only"
        )
    layer = key.removeprefix(PREFIX).removesuffix(suffix)
    if not _LAYER.fullmatch(layer):
        raise AdapterRefused(f"{key!r} matches no layer of FLUX.2: {layer!r} is not one of its linear layers")
    return layer, suffix


def _update(group: _Group, header: Header) -> LayerUpdate:
    for key in group.tensors.values():
        if header.tensors[key].dtype not in FLOAT_DTYPES:
            raise AdapterRefused(f"{key!r} holds {header.tensors[key].dtype} values, not floating point")
    if group.kind is None:
        raise AdapterRefused(f"{group.tensors['alpha']!r} has no lora_A and lora_B beside it")
    return _KINDS[group.kind](group, header)


def _lora(group: _Group, header: Header) -> LayerUpdate:
    for role, present, absent in (("down", "lora_B", "lora_A"), ("up", "lora_A", "lora_B")):
        if role not in group.tensors:
            other = group.tensors["up" if role == "down" else "down"]
            raise AdapterRefused(f"{other!r} is a {present} without its {absent}")
    down, up = (header.tensors[group.tensors[role]].shape for role in ("down", "up"))
    for role, shape in (("down", down), ("up", up)):
        if len(shape) != 2 or 0 in shape:
            raise AdapterRefused(f"{group.tensors[role]!r} has shape {list(shape)}, not two sizes of 1 or more")
    if down[0] != up[1]:
        raise AdapterRefused(
            f"{group.tensors['up']!r} has shape {list(up)} and {group.tensors['down']!r} has {list(down)}: "
            f"ranks {up[1]} and {down[0]} differ"
        )
    if down[0] > MAX_RANK:
        raise AdapterRefused(f"{group.tensors['down']!r} has rank {down[0]}, and the limit is {MAX_RANK}")
    _check_scalar(group, header)
    return LayerUpdate(group.layer, "lora", dict(group.tensors), (up[0], down[1]), down[0])


def _check_scalar(group: _Group, header: Header) -> None:
    key = group.tensors.get("alpha")
    if key is not None and header.tensors[key].shape not in ((), (1,)):
        raise AdapterRefused(f"{key!r} has shape {list(header.tensors[key].shape)}, not a single number")


# Suffix of a key: the kind that it implies (None: shared by kinds) and the tensor's role in the update.
_SUFFIXES: dict[str, tuple[str | None, str]] = {
    ".lora_A.weight": ("lora", "down"),
    ".lora_B.weight": ("lora", "up"),
    ".alpha": (None, "alpha"),
}

_KINDS: dict[str, Callable[[_Group, Header], LayerUpdate]] = {"lora": _lora}

# Black Forest Labs' module paths of every linear layer: blocks (trained by default), then the rest.
_LAYER = re.compile(
    r"double_blocks\.[0-9]+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])"
    r"|single_blocks\.[0-9]+\.linear[12]"
    r"|img_in|txt_in|(time|guidance)_in\.(in|out)_layer"
    r"|(double_stream_modulation_(img|txt)|single_stream_modulation)\.lin"
    r"|final_layer\.(linear|adaLN_modulation\.1)"
)

# What a refused key is, first match wins.
_FOREIGN = (
    (r"\.lokr_", "a LoKr tensor"),
    (r"\.(hada|oft)_", "a LyCORIS tensor"),
    (r"\.(magnitude|dora_scale|lora_magnitude_vector)(\.weight)?$", "a DoRA magnitude"),
    (r"\.diff(_b)?$", "a full weight difference"),
    (r"^(text_encoder|te\d?|lora_te\d?|text_model|conditioner|clip)[._]", "a text-encoder tensor"),
    (r"^(lora_unet|lora_transformer|lycoris)_", "named in kohya's style"),
    (r"\.lora[._](down|up)\.weight$", "a lora_down/lora_up tensor"),
    (r"^(transformer|base_model|unet|model)\.", "a tensor under another prefix"),
    (r"\.lora_[AB]\.[^.]+\.weight$", "a PEFT tensor with an adapter name"),
    (r"\.lora_[AB]\.weight$|\.alpha$", f"a tensor without the {PREFIX!r} prefix"),
    (r"\.(weight|bias|scale)$", "a whole weight, as in a model checkpoint"),
)
