"""Recognise the linear layer of FLUX.2 that a key of an adapter file names.

Files use Black Forest Labs' name of a layer (like AI Toolkit, with or without a prefix), that name with LyCORIS's
underscores, or the diffusers parameter, which may hold only some of the layer's rows. This module maps all three to the
same target; `shared.layer_names` has the table.
"""

from __future__ import annotations

import re

from shared.layer_names import DOUBLE_BLOCK_LAYERS, LAYERS, SINGLE_BLOCK_LAYERS, Target

PREFIX = "diffusion_model."
PREFIXES = (PREFIX, "transformer.", "")
UNDERSCORED_PREFIX = "lycoris_"


def parse_target(module: str) -> Target | None:
    """Return the target that a key without its suffix names; None if no FLUX.2 has such a linear layer."""
    if module.startswith(UNDERSCORED_PREFIX):
        return _underscored(module.removeprefix(UNDERSCORED_PREFIX))
    name = strip_prefix(module)
    return _bfl(name) or _diffusers(name)


def strip_prefix(module: str) -> str:
    """Return the module path without the prefix that the file puts before it."""
    return module.removeprefix(next(prefix for prefix in PREFIXES if module.startswith(prefix)))


def _bfl(name: str) -> Target | None:
    match = re.fullmatch(r"(double|single)_blocks\.[0-9]+\.(.+)", name)
    known = name in _OTHERS if match is None else match[2] in _BLOCKS[match[1]]
    return Target(name) if known else None


def _underscored(name: str) -> Target | None:
    match = re.fullmatch(r"((?:double|single)_blocks)_([0-9]+)_(.+)", name)
    block, path = (f"{match[1]}.{match[2]}.", match[3]) if match else ("", name)
    layers = _BLOCKS[match[1].removesuffix("_blocks")] if match else _OTHERS
    found = next((layer for layer in layers if layer.replace(".", "_") == path), None)
    return None if found is None else Target(block + found)


def _diffusers(name: str) -> Target | None:
    match = re.fullmatch(r"(single_)?transformer_blocks\.([0-9]+)\.(.+)", name)
    if match is None:
        return LAYERS.get(name)
    kind = "single" if match[1] else "double"
    found = _DIFFUSERS_BLOCKS[kind].get(match[3])
    return None if found is None else Target(f"{kind}_blocks.{match[2]}.{found.layer}", found.rows)


_DIFFUSERS_BLOCKS = {"double": DOUBLE_BLOCK_LAYERS, "single": SINGLE_BLOCK_LAYERS}

# Black Forest Labs' module paths of every linear layer: those in blocks, then the rest.
_BLOCKS = {kind: {target.layer for target in layers.values()} for kind, layers in _DIFFUSERS_BLOCKS.items()}
_OTHERS = {target.layer for target in LAYERS.values()}
