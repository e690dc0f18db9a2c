"""List the layers that an adapter file updates, and how, from its header.

Every layout goes through the same steps: each key is split (`shared.adapters.suffixes`), its module is translated to a
layer of Black Forest Labs (`names`), tensors are grouped by layer and recognised as an update (`kinds`), and the scale
of each update is found (`strength`). A file with a tensor that is not understood is refused (`foreign`): if the tensor
were skipped, the image could be the base model's and still look like a result.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from shared.adapters.base_model import stated_base
from shared.adapters.base_sizes import describe_fitting_base, find_flux1_update
from shared.adapters.foreign import (
    describe_other_base,
    foreign_tensors,
    is_text_encoder,
    made_for_flux1,
    text_encoder_tensors,
)
from shared.adapters.header_json import Header
from shared.adapters.kinds import LayerUpdate, TensorGroup, parse_update
from shared.adapters.names import PREFIX, parse_target, strip_prefix
from shared.adapters.strength import Source, StatedAlpha, Strength, resolve_strengths, stated_alphas
from shared.adapters.suffixes import describe_missing_half, split_key
from shared.catalog import find_model
from shared.errors import AdapterMismatch, AdapterRefused
from shared.job import AdapterPart

__all__ = ["PREFIX", "AdapterLayout", "LayerUpdate", "check_fits_base", "parse_layout"]


@dataclass(frozen=True)
class AdapterLayout:
    """The updates of a whole file.

    Attributes:
        kind: kind of the updates, e.g. `lora`; several kinds are joined, as in `diff+lora`.
        updates: ordered by the first key of each layer in the file.
        metadata: the file's `__metadata__`.
        ignored: number of layers that were left out, by part.
    """

    kind: str
    updates: tuple[LayerUpdate, ...]
    metadata: dict[str, str]
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def layers(self) -> frozenset[str]:
        """Layers that the file updates; several updates may share one layer."""
        return frozenset(update.layer for update in self.updates)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Distinct ranks, ascending; empty if no update has a rank."""
        return tuple(sorted({update.rank for update in self.updates if update.rank is not None}))

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the tensors that belong to the updates."""
        return frozenset(key for update in self.updates for key in (*update.tensors.values(), *update.ignored))

    @property
    def scale_range(self) -> tuple[float, float] | None:
        """The smallest and the largest scale of the updates; None if an alpha tensor has not been read."""
        scales = [update.strength.scale for update in self.updates]
        known = [scale for scale in scales if scale is not None]
        return (min(known), max(known)) if len(known) == len(scales) else None

    @property
    def scale_sources(self) -> tuple[Source, ...]:
        """Where the scales were found."""
        return tuple(sorted({update.strength.source for update in self.updates}))


def parse_layout(
    header: Header,
    *,
    config: str | None = None,
    alphas: Mapping[str, float] | None = None,
    ignore: Collection[AdapterPart] = (),
) -> AdapterLayout:
    """Group the file's tensors into updates of layers.

    Args:
        config: text of PEFT's `adapter_config.json` from the file's folder.
        alphas: values of alpha tensors, by key, to compare them with other sources of alpha.
        ignore: parts of the file to leave out.

    Raises:
        AdapterRefused: a tensor does not belong to a supported update of a FLUX.2 layer, or sources of alpha
            contradict each other; the message names a key.
    """
    if not header.tensors:
        raise AdapterRefused("the file holds no tensors, so it matches no layer")
    text_encoder = [key for key in header.tensors if is_text_encoder(key)]
    groups = _group(header, skipped=frozenset(text_encoder))
    _check_overlaps(groups)
    updates = tuple(parse_update(group, header) for group in groups)
    flux1 = find_flux1_update(updates)
    if flux1 is not None:
        raise made_for_flux1(_first_key(flux1))
    _check_lone_halves(updates)
    updates = _with_strengths(groups, updates, stated_alphas(header.metadata, config), alphas or {})
    # Last: for a file with another fault, leaving the text encoder out would not help.
    if text_encoder and (not groups or "text_encoder" not in ignore):
        stated = stated_base(header.metadata)
        if stated is not None and stated.is_other_family:
            raise AdapterRefused(f"{text_encoder[0]!r} is a text-encoder tensor; {describe_other_base(stated)}")
        raise text_encoder_tensors(text_encoder, only=not groups)
    kinds = sorted({update.kind for update in updates})
    ignored = {"text_encoder": _count_layers(text_encoder)} if text_encoder else {}
    return AdapterLayout("+".join(kinds), updates, dict(header.metadata), ignored)


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
    trained_on = stated_base(layout.metadata)
    if trained_on is not None and trained_on.is_other_family:
        raise AdapterRefused(describe_other_base(trained_on))
    if trained_on is not None and not any(map(find_model(model).runs_adapters_of, trained_on.models)):
        remedy = (
            "request the model that it was trained on"
            if trained_on.models
            else f"no model has that name here; if it means {model}, write that into the file's header"
        )
        raise AdapterRefused(
            f"the adapter was trained on {trained_on.spelling!r} ({trained_on.key}), not on {model!r}; {remedy}"
        )
    if layers is not None:
        _check_layers(layout, layers, model=model)
        _check_shapes(layout, layers, model=model)


def _check_layers(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]], *, model: str) -> None:
    missing = [update for update in layout.updates if update.layer not in layers]
    if not missing:
        return
    hint = describe_fitting_base(layout.updates, model=model)
    if len(missing) == len(layout.updates):
        raise AdapterRefused(
            f"the adapter matches no layer of {model}; the first key is {_first_key(missing[0])!r}{hint}"
        )
    raise AdapterRefused(
        f"{_first_key(missing[0])!r} names a layer that {model} does not have; "
        f"it lacks {len({update.layer for update in missing})} of the adapter's {len(layout.layers)} layers{hint}"
    )


def _fits(update: LayerUpdate, layers: Mapping[str, tuple[int, int]]) -> bool:
    out, features = layers[update.layer]
    return update.shape == (update.rows.of(out), features)


def _check_shapes(layout: AdapterLayout, layers: Mapping[str, tuple[int, int]], *, model: str) -> None:
    for update in layout.updates:
        if _fits(update, layers):
            continue
        out, features = layers[update.layer]
        expected = (update.rows.of(out), features)
        if update.kind == "fullrank":
            raise AdapterRefused(
                f"{describe_missing_half(_first_key(update))}; by itself it would update the whole layer, "
                f"but it is {update.shape} and the layer {expected}; "
                "export or copy the file again"
            )
        hint = describe_fitting_base(layout.updates, model=model)
        if not hint:
            others = sum(not _fits(each, layers) for each in layout.updates) - 1
            hint = "; export the adapter again, with whole layers of that size" + (
                f" ({others} other {'update does' if others == 1 else 'updates do'} not fit either)" if others else ""
            )
        raise AdapterMismatch(update.layer, expected=expected, got=update.shape, hint=hint)


def _group(header: Header, *, skipped: Container[str]) -> list[TensorGroup]:
    """Group the tensors by the layer that their keys name; refuse a file with any other tensor.

    Args:
        skipped: keys that are left out.
    """
    groups: dict[str, TensorGroup] = {}
    foreign: list[str] = []
    adapters: dict[str, str] = {}
    for key in header.tensors:
        if key in skipped:
            continue
        split = split_key(key)
        target = None if split is None else parse_target(split.module)
        if split is None or target is None:
            foreign.append(key)
            continue
        # A layer has one of each, so some tools leave the adapter's name out there.
        if split.adapter or split.role not in ("alpha", "magnitude"):
            adapters.setdefault(split.adapter, key)
        group = groups.setdefault(split.module, TensorGroup(target, strip_prefix(split.module)))
        twin = group.tensors.setdefault(split.role, key)
        if twin != key and len(adapters) < 2:
            raise AdapterRefused(
                f"{twin!r} and {key!r} are the same tensor of one layer under two names; remove one of them"
            )
    if foreign:
        split = split_key(foreign[0])
        module = None if split is None else strip_prefix(split.module)
        raise foreign_tensors(foreign, module, stated_base(header.metadata))
    if len(adapters) > 1:
        first, second = list(adapters.values())[:2]
        raise AdapterRefused(f"{first!r} and {second!r} belong to two adapters; save each adapter to its own file")
    return list(groups.values())


def _with_strengths(
    groups: Iterable[TensorGroup],
    updates: Iterable[LayerUpdate],
    stated: list[StatedAlpha],
    alphas: Mapping[str, float],
) -> tuple[LayerUpdate, ...]:
    named = {group.module: update for group, update in zip(groups, updates, strict=True)}
    ranks = {module: update.rank for module, update in named.items() if update.rank is not None}
    keys = {module: _first_key(named[module]) for module in ranks}
    tensor_alphas = {
        module: alphas.get(named[module].tensors["alpha"]) for module in ranks if "alpha" in named[module].tensors
    }
    strengths = resolve_strengths(ranks, keys=keys, tensor_alphas=tensor_alphas, stated=stated)
    if any(each.uses_dora for each in stated) and not any("magnitude" in each.tensors for each in named.values()):
        raise AdapterRefused("the file's config says use_dora, but no layer has a magnitude; export the adapter again")
    return tuple(
        replace(update, strength=strengths.get(module, _strength_without_rank(update, stated)))
        for module, update in named.items()
    )


def _count_layers(keys: Iterable[str]) -> int:
    splits = {key: split_key(key) for key in keys}
    return len({key if split is None else split.module for key, split in splits.items()})


def _strength_without_rank(update: LayerUpdate, stated: list[StatedAlpha]) -> Strength:
    return Strength(source="unused" if stated or update.ignored else "none")


def _first_key(update: LayerUpdate) -> str:
    return next(iter(update.tensors.values()))


def _check_overlaps(groups: Iterable[TensorGroup]) -> None:
    """Refuse two updates of the same rows, because their order would decide the result."""
    seen: dict[str, list[TensorGroup]] = {}
    for group in groups:
        # A diffusers file may update the three thirds of a qkv layer separately.
        others = seen.setdefault(group.target.layer, [])
        for other in others:
            if group.target.rows.overlaps(other.target.rows):
                first, second = (next(iter(each.tensors.values())) for each in (other, group))
                raise AdapterRefused(
                    f"{first!r} and {second!r} update the same rows of {group.target.layer}; remove one of them"
                )
        others.append(group)


def _check_lone_halves(updates: Iterable[LayerUpdate]) -> None:
    """Refuse a lone lora_A in a file that also has pairs: in the trainer's full-rank files no layer has a lora_B."""
    kinds: dict[str, LayerUpdate] = {}
    for update in updates:
        kinds.setdefault(update.kind, update)
    if "fullrank" in kinds and not kinds.keys().isdisjoint({"lora", "dora"}):
        raise AdapterRefused(
            f"{describe_missing_half(_first_key(kinds['fullrank']))}, which other layers of the file have; export "
            "or copy the file again"
        )
