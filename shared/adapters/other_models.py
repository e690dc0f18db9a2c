"""Recognise adapters that were made for another family of models, by the names of modules that FLUX.2 lacks.

People pick the wrong file more often than they have an unusual one, and "not a layer of FLUX.2" alone does not say it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# The first that fits counts. Modules are named with dots or, by kohya and LyCORIS, with underscores.
_FAMILIES = (
    (
        "Stable Diffusion 1.5, 2 or XL",
        r"(?:^|[._])(?:down_blocks|up_blocks|input_blocks|output_blocks)[._]\d+[._]|(?:^|[._])(?:mid|middle)_block[._]",
    ),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mod|mlp)[._]"),
    ("Wan", r"(?:^|[._])blocks[._]\d+[._](?:self_attn|cross_attn|ffn)[._]"),
    (
        "Z-Image or Lumina",
        r"(?:^|[._])(?:noise|context)_refiner[._]|(?:^|[._])layers[._]\d+[._](?:attention|feed_forward)[._]",
    ),
    ("Stable Diffusion 3", r"(?:^|[._])joint_blocks[._]\d+[._]"),
    ("HiDream", r"(?:double|single)_stream_blocks[._]"),
    ("Chroma", r"(?:^|[._])distilled_guidance_layer[._]"),
    # In the names of Black Forest Labs, diffusers and XLabs.
    (
        "FLUX.1",
        r"double_blocks[._]\d+[._](?:img|txt)_mod(?:[._]|$)|single_blocks[._]\d+[._]modulation"
        r"|double_blocks[._]\d+[._]processor[._]|(?:^|[._])vector_in[._]|(?:^|[._])time_text_embed[._]"
        r"|single_transformer_blocks[._]\d+[._](?:proj_|norm[._]linear|attn[._]to_[qkv](?![a-z]))",
    ),
    (
        "FLUX.1 or Stable Diffusion 3",
        r"transformer_blocks[._]\d+[._](?:(?:norm1|norm1_context)[._]linear|ff(?:_context)?[._]net)[._]",
    ),
)  # fmt: skip


class OtherModel(NamedTuple):
    """A family of models other than FLUX.2, and a key that only adapters of it have."""

    family: str
    key: str


def find_other_model(keys: Sequence[str]) -> OtherModel | None:
    """Return the family for which these tensors were made; None if their names show none.

    Args:
        keys: those that name no layer of FLUX.2.
    """
    for family, pattern in _FAMILIES:
        found = next((key for key in keys if re.search(pattern, key)), None)
        if found is not None:
            return OtherModel(family, found)
    return None
