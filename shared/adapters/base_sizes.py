"""Find the base model that an adapter's shapes fit, to name it when another one was requested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shared.adapters.kinds import LayerUpdate
from shared.catalog import MODELS
from shared.layer_names import WHOLE


class _Size(NamedTuple):
    """Width of the hidden states, numbers of blocks, and width of the text's embeddings."""

    hidden: int
    double_blocks: int
    single_blocks: int
    text: int


_SIZES = {
    "flux2": _Size(6144, 8, 48, 15360),
    "flux2_klein_4b": _Size(3072, 5, 20, 7680),
    "flux2_klein_9b": _Size(4096, 8, 24, 12288),
}
#: Numbers of double and single blocks of FLUX.1.
FLUX1_BLOCKS = (19, 38)
_MOST_DOUBLE_BLOCKS = max(size.double_blocks for size in _SIZES.values())
# (out, in) of FLUX.1's layers, by name outside of its block, where no FLUX.2 has the same.
_FLUX1_SHAPES = {
    "img_mlp.0": (12288, 3072), "img_mlp.2": (3072, 12288), "txt_mlp.0": (12288, 3072), "txt_mlp.2": (3072, 12288),
    "linear1": (21504, 3072), "linear2": (3072, 15360), "img_in": (3072, 64), "txt_in": (3072, 4096),
    "final_layer.linear": (64, 3072),
}  # fmt: skip

_BLOCK_LAYERS = {
    "img_attn.qkv": (3, 1), "img_attn.proj": (1, 1), "img_mlp.0": (6, 1), "img_mlp.2": (1, 3),
    "txt_attn.qkv": (3, 1), "txt_attn.proj": (1, 1), "txt_mlp.0": (6, 1), "txt_mlp.2": (1, 3),
    "linear1": (9, 1), "linear2": (1, 4),
}  # fmt: skip


def linear_layers(model: str) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear layer of a published FLUX.2 model, by Black Forest Labs' name."""
    size = _SIZES[model]
    width = size.hidden
    layers = {
        f"{kind}_blocks.{index}.{name}": (out * width, features * width)
        for kind, count in (("double", size.double_blocks), ("single", size.single_blocks))
        for index in range(count)
        for name, (out, features) in _BLOCK_LAYERS.items()
        if name.startswith("linear") == (kind == "single")
    }
    layers |= {"img_in": (width, 128), "txt_in": (width, size.text), "final_layer.linear": (128, width)}
    for embedder in ("time_in", "guidance_in") if model == "flux2" else ("time_in",):
        layers |= {f"{embedder}.in_layer": (width, 256), f"{embedder}.out_layer": (width, width)}
    for name, out in (
        ("double_stream_modulation_img.lin", 6),
        ("double_stream_modulation_txt.lin", 6),
        ("single_stream_modulation.lin", 3),
        ("final_layer.adaLN_modulation.1", 2),
    ):
        layers[name] = (out * width, width)
    return layers


def describe_fitting_base(updates: Iterable[LayerUpdate], *, model: str) -> str:
    """Return a clause that names the model that the updates fit, or nothing if none does."""
    updates = tuple(updates)
    for other in _SIZES:
        layers = linear_layers(other)
        if other != model and all(
            update.layer in layers
            and (update.rows.of(layers[update.layer][0]), layers[update.layer][1]) == update.shape
            for update in updates
        ):
            return f"; it fits {_title(other)}, not {_title(model)}: request the model that it was trained on"
    return ""


def _title(model: str) -> str:
    return f"{MODELS[model].title} ({model})" if model in MODELS else model


def find_flux1_update(updates: Iterable[LayerUpdate]) -> LayerUpdate | None:
    """Return the first update that only FLUX.1 has a layer for, by its shape or its block's number; None without one.

    FLUX.1 and klein 4B are equally wide, so most of their shapes differ only in some of the layers.
    """
    updates = tuple(updates)
    numbers: dict[str, dict[int, LayerUpdate]] = {"double": {}, "single": {}}
    for update in updates:
        kind, _, path = update.layer.partition("_blocks.")
        number, _, name = path.partition(".")
        if _FLUX1_SHAPES.get(name or update.layer) == update.shape and update.rows == WHOLE:
            return update
        if path:
            numbers[kind].setdefault(int(number), update)
    last = {kind: max(found, default=-1) for kind, found in numbers.items()}
    double, single = (count - 1 for count in FLUX1_BLOCKS)
    # No FLUX.2 has as many double blocks, nor as few single blocks.
    if last["double"] == double:
        return next(update for number, update in numbers["double"].items() if number >= _MOST_DOUBLE_BLOCKS)
    return numbers["single"][single] if last["single"] == single and last["double"] < 0 else None
