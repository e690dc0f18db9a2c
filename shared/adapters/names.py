"""Recognise the linear layer of FLUX.2 that a key of an adapter file names.

Each trainer puts a prefix before a layer's name, and some write underscores for dots. The name is Black Forest Labs'
(as in AI Toolkit), a part of such a layer (as in OneTrainer), or the diffusers parameter, which may hold only some of
the layer's rows. `_PREFIXES` and `_BLOCKS` have an entry for each; `shared.layer_names` has the layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from shared.layer_names import DOUBLE_BLOCK_LAYERS, LAYERS, SINGLE_BLOCK_LAYERS, SPLIT_LAYERS, Target

PREFIX = "diffusion_model."
# The longest that fits counts, so that `transformer.base_model.model.` is not taken for `transformer.`.
_PREFIXES = sorted(
    (
        "",
        PREFIX,  # AI Toolkit
        "model.diffusion_model.",  # checkpoints of ComfyUI
        "transformer.",  # diffusers, SimpleTuner, OneTrainer
        "base_model.model.",  # PEFT
        "transformer.base_model.model.",
        "diffusion_model.base_model.model.",
        "base_model.model.transformer.",
        "base_model.model.diffusion_model.",
        "lora_unet_",  # kohya, musubi-tuner
        "lora_transformer_",  # OneTrainer
        "lycoris_",  # LyCORIS
    ),
    key=len,
    reverse=True,
)


# No trainer writes leading zeros, and the patterns of a hostile config would take minutes on long names.
_IN_BLOCK = re.compile(r"((?:double|single)_blocks|(?:single_)?transformer_blocks)_(0|[1-9][0-9]{0,2})_(.+)")


class _Block(NamedTuple):
    """Blocks of one kind, `double` or `single`, and their layers by path in the block, with underscores for dots."""

    kind: str
    layers: Mapping[str, Target]


def parse_target(module: str) -> Target | None:
    """Return the target that a key without its suffix names; None if no FLUX.2 has such a linear layer."""
    # musubi-tuner's converter writes dots between modules but underscores inside of the attention's names. Layers
    # differ without their separators too, so the mixture names one layer.
    name = strip_prefix(module).replace(".", "_")
    match = _IN_BLOCK.fullmatch(name)
    if match is None:
        return _OTHERS.get(name)
    block = _BLOCKS[match[1]]
    found = block.layers.get(match[3])
    return None if found is None else Target(f"{block.kind}_blocks.{match[2]}.{found.layer}", found.rows)


def strip_prefix(module: str) -> str:
    """Return the module path without the prefix that the file puts before it."""
    return module.removeprefix(next(prefix for prefix in _PREFIXES if module.startswith(prefix)))


def _underscored(layers: Mapping[str, Target]) -> dict[str, Target]:
    return {path.replace(".", "_"): target for path, target in layers.items()}


def _whole(layers: Mapping[str, Target]) -> dict[str, Target]:
    """Return Black Forest Labs' own names of the layers."""
    return {target.layer: Target(target.layer) for target in layers.values()}


_BLOCKS = {
    "double_blocks": _Block("double", _underscored(_whole(DOUBLE_BLOCK_LAYERS) | SPLIT_LAYERS["double"])),
    "single_blocks": _Block("single", _underscored(_whole(SINGLE_BLOCK_LAYERS) | SPLIT_LAYERS["single"])),
    "transformer_blocks": _Block("double", _underscored(DOUBLE_BLOCK_LAYERS)),
    "single_transformer_blocks": _Block("single", _underscored(SINGLE_BLOCK_LAYERS)),
}
_OTHERS = _underscored(_whole(LAYERS) | LAYERS)
