"""List the layers that an adapter file updates, and how, from its header alone.

A file with a tensor that is not understood is refused: if the tensor were skipped, the image could be the base model's
and still look like a result. `shared.adapters.names` knows the layers, `shared.adapters.kinds` the kinds of update; the
`_FOREIGN` tables only describe refused tensors in messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.adapters.header_json import Header
from shared.adapters.kinds import ROLES, LayerUpdate, TensorGroup, describe_missing_half, parse_update
from shared.adapters.names import PREFIX, parse_target, strip_prefix
from shared.catalog import find_model
from shared.errors import AdapterMismatch, AdapterRefused
from shared.layer_names import Rows, Target

__all__ = ["PREFIX", "AdapterLayout", "LayerUpdate", "check_fits_base", "parse_layout"]


@dataclass(frozen=True)
class AdapterLayout:
    """The updates of a whole file.

    Attributes:
        kind: kind of the updates, e.g. `lora`; several kinds are joined, as in `diff+lora`.
        updates: ordered by the first key of each layer in the file.
        metadata: the file's `__metadata__`.
    """

    kind: str
    updates: tuple[LayerUpdate, ...]
    metadata: dict[str, str]

    @property
    def layers(self) -> frozenset[str]:
        """Layers that the file updates; several updates may share one layer."""
        return frozenset(update.layer for update in self.updates)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Distinct ranks, ascending; empty if no update has a rank."""
        return tuple(sorted({update.rank for update in self.updates if update.rank is not None}))


def parse_layout(header: Header) -> AdapterLayout:
    """Group the file's tensors into updates of layers.

    Raises:
        AdapterRefused: a tensor does not belong to a supported update of a FLUX.2 layer; the message names its key.
    """
    if not header.tensors:
        raise AdapterRefused("the file holds no tensors, so it matches no layer")
    groups: dict[str, TensorGroup] = {}
    for key in header.tensors:
        module, suffix = _split(key)
        group = groups.setdefault(module, TensorGroup(_target(key, module)))
        twin = group.tensors.setdefault(ROLES[suffix], key)
        if twin != key:
            raise AdapterRefused(f"{twin!r} and {key!r} are the same tensor of one layer under two names")
    _check_overlaps(groups.values())
    updates = tuple(parse_update(group, header) for group in groups.values())
    _check_lone_halves(updates)
    kinds = sorted({update.kind for update in updates})
    return AdapterLayout("+".join(kinds), updates, dict(header.metadata))


def check_fits_base(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]] | None, *, model: str) -> None:
    """Refuse a file that was trained on another base model or has an update that fits no layer of this one.

    Args:
        layers: (out, in) of each linear layer of the base, by module path without `.weight`; None skips this check.
        model: id in the catalogue, e.g. `flux2`.

    Raises:
        AdapterRefused: the file names another base model, updates a missing layer, or holds half a LoRA.
        AdapterMismatch: an update has another shape than its layer.
    """
    # FLUX.2 models share layer names, so this message explains a wrong base better than the first wrong shape would.
    trained_on = layout.metadata.get("ss_base_model_version")
    if trained_on and not find_model(model).runs_adapters_of(trained_on):
        raise AdapterRefused(
            f"the adapter was trained on {trained_on!r} (ss_base_model_version), not on {model!r}; "
            "request the model that it was trained on"
        )
    if layers is not None:
        _check_layers(layout, layers, model=model)
        _check_shapes(layout, layers)


def _check_layers(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]], *, model: str) -> None:
    missing = [update for update in layout.updates if update.layer not in layers]
    if len(missing) == len(layout.updates):
        raise AdapterRefused(f"the adapter matches no layer of {model}; the first key is {_first_key(missing[0])!r}")
    if missing:
        raise AdapterRefused(
            f"{_first_key(missing[0])!r} names a layer that {model} does not have; "
            f"it lacks {len({update.layer for update in missing})} of the adapter's {len(layout.layers)} layers"
        )


def _check_shapes(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]]) -> None:
    for update in layout.updates:
        expected = _expected(update.rows, layers[update.layer])
        if update.kind == "fullrank" and update.shape != expected:
            raise AdapterRefused(
                f"{describe_missing_half(_first_key(update))}; by itself it would update the whole layer, "
                f"but it is {update.shape} and the layer {expected}"
            )
        if update.shape != expected:
            raise AdapterMismatch(update.layer, expected=expected, got=update.shape)


def _expected(rows: Rows, shape: tuple[int, int]) -> tuple[int, int]:
    return (shape[0] * len(rows.parts) // rows.part_count, shape[1])


def _first_key(update: LayerUpdate) -> str:
    return next(iter(update.tensors.values()))


def _split(key: str) -> tuple[str, str]:
    """Split a key into module and suffix, or refuse it."""
    suffix = next((known for known in ROLES if key.endswith(known)), None)
    if suffix is None:
        raise _foreign(key, (*_FOREIGN_MODULES, *_FOREIGN_TENSORS))
    return key.removesuffix(suffix), suffix


def _target(key: str, module: str) -> Target:
    target = parse_target(module)
    if target is not None:
        return target
    if any(re.search(pattern, key) for pattern, _ in _FOREIGN_MODULES):
        raise _foreign(key, _FOREIGN_MODULES)
    raise AdapterRefused(
        f"{key!r} matches no layer of FLUX.2: {strip_prefix(module)!r} is not one of its linear layers"
    )


def _foreign(key: str, table: Iterable[tuple[str, str]]) -> AdapterRefused:
    what = next((name for pattern, name in table if re.search(pattern, key)), "not a tensor of an adapter")
    return AdapterRefused(
        f"{key!r} is {what}; only LoRA, DoRA, LoKr, full-rank and diff updates of linear layers are supported, under "
        "the names of Black Forest Labs, diffusers or LyCORIS"
    )


def _check_overlaps(groups: Iterable[TensorGroup]) -> None:
    """Refuse two updates of the same rows, because their order would decide the result."""
    seen: dict[str, list[TensorGroup]] = {}
    for group in groups:
        # A diffusers file may update the three thirds of a qkv layer separately.
        others = seen.setdefault(group.target.layer, [])
        for other in others:
            if group.target.rows.overlaps(other.target.rows):
                first, second = (next(iter(each.tensors.values())) for each in (other, group))
                raise AdapterRefused(f"{first!r} and {second!r} update the same rows of {group.target.layer}")
        others.append(group)


def _check_lone_halves(updates: Iterable[LayerUpdate]) -> None:
    """Refuse a lone lora_A in a file that also has pairs: in the trainer's full-rank files no layer has a lora_B."""
    kinds: dict[str, LayerUpdate] = {}
    for update in updates:
        kinds.setdefault(update.kind, update)
    if "fullrank" in kinds and not kinds.keys().isdisjoint({"lora", "dora"}):
        raise AdapterRefused(
            f"{describe_missing_half(_first_key(kinds['fullrank']))}, which other layers of the file have"
        )


# Patterns of keys that are refused, with the words that explain them; the first match counts.
_FOREIGN_MODULES = (
    (r"^(text_encoder|te\d?|lora_te\d?|text_model|conditioner|clip)[._]", "a text-encoder tensor"),
    (r"^(lora_unet|lora_transformer)_", "named in kohya's style"),
    (r"^(base_model|unet|model)\.", "a tensor under another prefix"),
)
_FOREIGN_TENSORS = (
    (r"\.diff_b$", "a change of a bias, and FLUX.2's linear layers have none"),
    (r"\.lokr_t[12]$", "a LoKr tensor in Tucker form"),
    (r"\.(hada|oft|boft|ia3|glora)_", "a LyCORIS tensor"),
    (r"\.(dora_scale|lora_magnitude_vector)(\.weight)?$", "a DoRA magnitude in another convention"),
    (r"\.lora_[AB]\.[^.]+\.weight$", "a PEFT tensor with an adapter name"),
    (r"\.(weight|bias|scale)$", "a whole weight, as in a model checkpoint"),
)
