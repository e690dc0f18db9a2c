"""Recognise the end of a key, which says what a tensor is to its layer's update.

A new spelling of a tensor is one entry of `ROLES`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Role of a tensor in its layer's update, by the suffix of its key.
ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    # Earlier versions of diffusers.
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    # The lengths of a DoRA's rows: AI Toolkit, PEFT, OneTrainer and LyCORIS.
    ".magnitude": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".dora_scale": "magnitude",
    ".lokr_w1": "w1",
    ".lokr_w1_a": "w1_a",
    ".lokr_w1_b": "w1_b",
    ".lokr_w2": "w2",
    ".lokr_w2_a": "w2_a",
    ".lokr_w2_b": "w2_b",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".diff": "diff",
}
# PEFT puts the name of an adapter, without dots, into the keys of a model that has several: `lora_A.default.weight`.
_NAMED = re.compile(
    r"(\.(?:lora_(?:A|B|down|up|magnitude_vector)|hada_w[12]_[ab]))\.(?!(?:weight|bias)$)([\w-]+)((?:\.weight)?)$",
    re.ASCII,
)
_DOWN, _UP = ([suffix for suffix, role in ROLES.items() if role == half] for half in ("down", "up"))
# Each spelling of a LoRA has both halves, in the same order.
_OTHER_HALF = dict([*zip(_DOWN, _UP, strict=True), *zip(_UP, _DOWN, strict=True)])


class SplitKey(NamedTuple):
    """The parts of a key.

    Attributes:
        module: the layer, as the file names it.
        suffix: as in `ROLES`, without the adapter's name.
        adapter: PEFT's name for the adapter, or nothing.
    """

    module: str
    suffix: str
    adapter: str

    @property
    def role(self) -> str:
        return ROLES[self.suffix]


def split_key(key: str) -> SplitKey | None:
    """Split a key; None if it is no tensor of a supported update."""
    named = _NAMED.search(key)
    plain = key if named is None else f"{key[: named.start()]}{named[1]}{named[3]}"
    suffix = next((known for known in ROLES if plain.endswith(known)), None)
    if suffix is None:
        return None
    return SplitKey(plain.removesuffix(suffix), suffix, "" if named is None else named[2])


def describe_missing_half(key: str) -> str:
    """Return a sentence that names the missing half of the LoRA to which `key` belongs."""
    split = split_key(key)
    assert split is not None
    return f"{key!r} is a {_plain(split.suffix)} without its {_plain(_OTHER_HALF[split.suffix])}"


def _plain(suffix: str) -> str:
    return suffix.lstrip("._").removesuffix(".weight")
