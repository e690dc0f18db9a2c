"""Map FLUX.2's linear layers from diffusers' parameters to the rows of Black Forest Labs' layers.

Adapter files may use either set of names; checkpoints use Black Forest Labs', and the modules that run use diffusers'.
`shared.adapters.names` and `worker.checkpoint.tensor_names` both read this table. The trainer's parts of a layer are
only in adapter files.

Source:
    The pairs of convert_flux2_transformer_checkpoint_to_diffusers in diffusers' loaders/single_file_utils.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Rows(NamedTuple):
    """Some of `part_count` equal parts of a layer's rows, in order: (1, 0) of 2 is the lower half, then the upper."""

    parts: tuple[int, ...] = (0,)
    part_count: int = 1

    def of(self, row_count: int) -> int:
        """Return how many rows these are of a layer with `row_count` rows."""
        return row_count * len(self.parts) // self.part_count

    def overlaps(self, other: Rows) -> bool:
        """Return whether both have a row in common."""
        # Parts of different sizes count as overlapping, which refuses a file rather than guess.
        return self.part_count != other.part_count or not set(self.parts).isdisjoint(other.parts)


WHOLE = Rows()


class Target(NamedTuple):
    """Rows of one linear layer; the layer is Black Forest Labs' module path without `.weight`."""

    layer: str
    rows: Rows = WHOLE


#: Layers outside of the blocks, by diffusers' module path.
LAYERS = {
    "x_embedder": Target("img_in"),
    "context_embedder": Target("txt_in"),
    "time_guidance_embed.timestep_embedder.linear_1": Target("time_in.in_layer"),
    "time_guidance_embed.timestep_embedder.linear_2": Target("time_in.out_layer"),
    "time_guidance_embed.guidance_embedder.linear_1": Target("guidance_in.in_layer"),
    "time_guidance_embed.guidance_embedder.linear_2": Target("guidance_in.out_layer"),
    "double_stream_modulation_img.linear": Target("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": Target("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": Target("single_stream_modulation.lin"),
    # Black Forest Labs' rows are shift, then scale; diffusers' are scale, then shift, in weights and in updates.
    "norm_out.linear": Target("final_layer.adaLN_modulation.1", Rows((1, 0), 2)),
    "proj_out": Target("final_layer.linear"),
}

#: Layers inside of a double-stream block (image and text apart), by diffusers' path in the block.
DOUBLE_BLOCK_LAYERS = {
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
}

#: Layers inside of a single-stream block (image and text as one sequence).
SINGLE_BLOCK_LAYERS = {"attn.to_qkv_mlp_proj": Target("linear1"), "attn.to_out": Target("linear2")}

#: Parts of layers that OneTrainer trains as layers apart, by the path that it gives them: query, key and value have a
#: third of qkv each. In linear1, with 9 times the model's width, they have a ninth each, and the MLP has the rest.
SPLIT_LAYERS = {
    "double": {
        f"{layer}.{part}": Target(layer, Rows((part,), 3))
        for layer in ("img_attn.qkv", "txt_attn.qkv")
        for part in range(3)
    },
    "single": {
        **{f"linear1.{part}": Target("linear1", Rows((part,), 9)) for part in range(3)},
        "linear1.3": Target("linear1", Rows(tuple(range(3, 9)), 9)),
    },
}
