"""Recognise the linear layer of FLUX.2 that a key of an adapter file names.

Files name a layer as Black Forest Labs do (like AI Toolkit, with a prefix or without), with LyCORIS's underscores, or
by the diffusers parameter, which may hold only some of the layer's rows. All three become the same target here. The
worker's own table, `worker.checkpoint.tensor_names`, names the tensors of loaded modules; a test compares the two.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "diffusion_model."
PREFIXES = (PREFIX, "transformer.", "")
UNDERSCORED_PREFIX = "lycoris_"


class Rows(NamedTuple):
    """Some of `of` equal parts of a layer's rows, in order: (1, 0) of 2 is the lower half followed by the upper."""

    parts: tuple[int, ...] = (0,)
    of: int = 1

    def overlaps(self, other: Rows) -> bool:
        """Return whether both have a row in common; parts of different sizes count as overlapping."""
        return self.of != other.of or not set(self.parts).isdisjoint(other.parts)


WHOLE = Rows()


class Target(NamedTuple):
    """The rows of one linear layer that an update changes; the layer is BFL's module path without `.weight`."""

    layer: str
    rows: Rows = WHOLE


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
        return _DIFFUSERS.get(name)
    kind = "single" if match[1] else "double"
    found = _DIFFUSERS_BLOCKS[kind].get(match[3])
    return None if found is None else Target(f"{kind}_blocks.{match[2]}.{found.layer}", found.rows)


# Black Forest Labs' module paths of every linear layer: blocks (trained by default), then the rest.
_BLOCKS = {
    "double": tuple(
        f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ),
    "single": ("linear1", "linear2"),
}
_OTHERS = (
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "time_in.out_layer",
    "guidance_in.in_layer",
    "guidance_in.out_layer",
    "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin",
    "single_stream_modulation.lin",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)

_DIFFUSERS = {
    "x_embedder": Target("img_in"),
    "context_embedder": Target("txt_in"),
    "time_guidance_embed.timestep_embedder.linear_1": Target("time_in.in_layer"),
    "time_guidance_embed.timestep_embedder.linear_2": Target("time_in.out_layer"),
    "time_guidance_embed.guidance_embedder.linear_1": Target("guidance_in.in_layer"),
    "time_guidance_embed.guidance_embedder.linear_2": Target("guidance_in.out_layer"),
    "double_stream_modulation_img.linear": Target("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": Target("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": Target("single_stream_modulation.lin"),
    # BFL's rows are shift, scale; diffusers' are scale, shift, and so are those of an update made for diffusers.
    "norm_out.linear": Target("final_layer.adaLN_modulation.1", Rows((1, 0), 2)),
    "proj_out": Target("final_layer.linear"),
}
_DIFFUSERS_BLOCKS = {
    "double": {
        "attn.to_q": Target("img_attn.qkv", Rows((0,), 3)),
        "attn.to_k": Target("img_attn.qkv", Rows((1,), 3)),
        "attn.to_v": Target("img_attn.qkv", Rows((2,), 3)),
        "attn.to_out.0": Target("img_attn.proj"),
        "ff.linear_in": Target("img_mlp.0"),
        "ff.linear_out": Target("img_mlp.2"),
        "attn.add_q_proj": Target("txt_attn.qkv", Rows((0,), 3)),
        "attn.add_k_proj": Target("txt_attn.qkv", Rows((1,), 3)),
        "attn.add_v_proj": Target("txt_attn.qkv", Rows((2,), 3)),
        "attn.to_add_out": Target("txt_attn.proj"),
        "ff_context.linear_in": Target("txt_mlp.0"),
        "ff_context.linear_out": Target("txt_mlp.2"),
    },
    "single": {"attn.to_qkv_mlp_proj": Target("linear1"), "attn.to_out": Target("linear2")},
}
