"""The names and the form of alpha in each target layout."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.adapters.names import PREFIX
from shared.adapters.strength import HEADER_CONFIG
from shared.errors import AdapterRefused
from shared.layer_names import DOUBLE_BLOCK_LAYERS, LAYERS, SINGLE_BLOCK_LAYERS, Rows, Target
from worker.conversion.factors import Factors, fold_scale, fuse_rows, select_rows
from worker.conversion.target import TargetLayout

# Diffusers reads PEFT's LoraConfig from an entry of the header; its keys begin with the component's name.
_COMPONENT = "transformer."

_FACTORS = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
_AI_TOOLKIT_SUFFIXES = {
    **_FACTORS,
    "magnitude": ".magnitude",
    "diff": ".diff",
    **{role: f".lokr_{role}" for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
}
_AI_TOOLKIT_KINDS = ("lora", "dora", "lokr", "fullrank", "diff")
_DIFFUSERS_SUFFIXES = {**_FACTORS, "magnitude": ".lora_magnitude_vector"}
_DIFFUSERS_KINDS = ("lora", "dora")

_KEEP = "keep the file as it is, since it can be used here without a conversion"


@dataclass(frozen=True)
class Written:
    """The contents of a converted file.

    Attributes:
        scales: distinct scales, other than 1, that it stores as alpha.
        metadata: the entries of `__metadata__` with these scales.
    """

    tensors: dict[str, Tensor]
    scales: frozenset[float]
    metadata: dict[str, str]


def write_layout(target: TargetLayout, layers: Mapping[str, Sequence[Factors]]) -> Written:
    """Return the tensors of an adapter in a target layout.

    Args:
        layers: the updates of each layer's rows.

    Raises:
        AdapterRefused: the layout has no form for an update with the same bits.
    """
    return _WRITERS[target]({layer: [fold_scale(part) for part in parts] for layer, parts in layers.items()})


def _ai_toolkit(layers: Mapping[str, Sequence[Factors]]) -> Written:
    """Source: load_weights of AI Toolkit's toolkit/network_mixins.py, which skips the alpha of all but LoKr."""
    tensors: dict[str, Tensor] = {}
    scales: set[float] = set()
    for layer, parts in layers.items():
        for part in parts:
            _check_kind(part, _AI_TOOLKIT_KINDS, f"AI Toolkit has no module for it; {_KEEP}")
        whole = fuse_rows(parts)
        if whole.kind == "lokr" and whole.rank is not None:
            tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(_alpha(whole))
            scales.add(whole.scale)
        elif whole.scale != 1:
            raise AdapterRefused(
                f"{whole.key!r} has the scale {whole.scale:g}, and AI Toolkit reads no alpha: only a power of two can "
                "be multiplied into a factor without rounding; use --to diffusers"
            )
        tensors |= _named(f"{PREFIX}{layer}", whole, _AI_TOOLKIT_SUFFIXES)
    return Written(tensors, frozenset(scales) - {1.0}, {})


def _diffusers(layers: Mapping[str, Sequence[Factors]]) -> Written:
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Factors] = {}
    for layer, parts in layers.items():
        for part in parts:
            remedy = "use --to ai-toolkit" if part.kind in _AI_TOOLKIT_KINDS else _KEEP
            _check_kind(part, _DIFFUSERS_KINDS, f"diffusers' layout has only LoRA and DoRA; {remedy}")
        modules |= _by_module(layer, parts)
    for module, part in modules.items():
        tensors |= _named(f"{_COMPONENT}{module}", part, _DIFFUSERS_SUFFIXES)
    if all(part.scale == 1 and part.kind == "lora" for part in modules.values()):
        # Without an entry, diffusers takes alpha for the rank of each module.
        return Written(tensors, frozenset(), {})
    config = {f"{_COMPONENT}{name}": value for name, value in _config(modules).items()}
    scales = frozenset(part.scale for part in modules.values())
    return Written(tensors, scales - {1.0}, {HEADER_CONFIG: json.dumps(config, indent=2, sort_keys=True)})


_WRITERS: dict[TargetLayout, Callable[[Mapping[str, Sequence[Factors]]], Written]] = {
    TargetLayout.AI_TOOLKIT: _ai_toolkit,
    TargetLayout.DIFFUSERS: _diffusers,
}


def _check_kind(part: Factors, kinds: Sequence[str], reason: str) -> None:
    if part.kind not in kinds:
        raise AdapterRefused(f"{part.key!r} belongs to an update of the kind {part.kind!r}: {reason}")
    if "magnitude" in part.tensors and (part.kind != "dora" or part.scales_columns):
        what = "each column" if part.scales_columns else f"each row of a {part.kind}"
        raise AdapterRefused(
            f"{part.key!r} belongs to an update with a length for {what}, and AI Toolkit and diffusers know only a "
            f"length for each row of a LoRA; {_KEEP}"
        )


def _named(module: str, part: Factors, suffixes: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {f"{module}{suffixes[role]}": tensor.contiguous() for role, tensor in part.tensors.items()}
    # Other tools store a DoRA's magnitude as a column or a row.
    return {key: tensor.flatten() if "magnitude" in key else tensor for key, tensor in tensors.items()}


def _by_module(layer: str, parts: Sequence[Factors]) -> Iterator[tuple[str, Factors]]:
    """Yield the update of each diffusers module that holds rows of a layer."""
    modules = list(_diffusers_modules(layer))
    by_rows = {part.rows: part for part in parts}
    if by_rows.keys() <= {rows for _, rows in modules}:
        yield from ((module, by_rows[rows]) for module, rows in modules if rows in by_rows)
        return
    whole = fuse_rows(parts)
    yield from ((module, select_rows(whole, rows)) for module, rows in modules)


def _diffusers_modules(layer: str) -> Iterator[tuple[str, Rows]]:
    kind, _, rest = layer.partition("_blocks.")
    number, _, path = rest.partition(".")
    tables: dict[str, tuple[str, Mapping[str, Target]]] = {
        "double": (f"transformer_blocks.{number}.", DOUBLE_BLOCK_LAYERS),
        "single": (f"single_transformer_blocks.{number}.", SINGLE_BLOCK_LAYERS),
    }
    prefix, table = tables.get(kind, ("", LAYERS))
    wanted = path if prefix else layer
    yield from ((f"{prefix}{module}", target.rows) for module, target in table.items() if target.layer == wanted)


def _config(modules: Mapping[str, Factors]) -> dict[str, object]:
    """Return PEFT's LoraConfig: the most frequent rank and alpha, and the others by the module's full path."""
    ranks = {module: part.rank for module, part in modules.items()}
    alphas = {module: _alpha(part) for module, part in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": list(modules),
        "use_dora": any(part.kind == "dora" for part in modules.values()),
        "use_rslora": False,
        "lora_bias": False,
    }


def _alpha(part: Factors) -> float:
    """Return the alpha whose quotient with the rank is exactly the scale."""
    rank = part.rank
    assert rank is not None
    product = part.scale * rank
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    alpha = next((alpha for alpha in near if alpha / rank == part.scale), None)
    if alpha is None:
        raise AdapterRefused(f"{part.key!r} has the scale {part.scale!r}, which no alpha gives with the rank {rank}")
    return alpha
