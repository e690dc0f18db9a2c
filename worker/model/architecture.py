"""Derive a FLUX.2 checkpoint's configuration from the names and shapes of its tensors.

Black Forest Labs' single files have no configuration. Widths and depths come from the shapes, so dev, klein and the
tiny models of the tests share one loader. `worker.checkpoint.fill` checks that all tensors are present.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# https://github.com/black-forest-labs/flux2/blob/main/src/flux2/model.py: four position axes share the head equally.
# Shapes show neither RoPE's base nor the norms' epsilons, which are the same in every FLUX.2.
ROPE_AXES = 4
ROPE_THETA = 2000


def transformer_config(shapes: Shapes, *, file: str) -> dict[str, Any]:
    """Return the arguments of diffusers' Flux2Transformer2DModel.

    Args:
        shapes: of the tensors, under Black Forest Labs' names.
        file: the name for error messages.

    Raises:
        CheckpointError: this is not a FLUX.2 transformer; the message names the tensor that shows it.
    """
    hidden, in_channels = _shape(shapes, "img_in.weight", 2, file)
    (head_dim,) = _shape(shapes, "single_blocks.0.norm.query_norm.scale", 1, file)
    if hidden % head_dim or head_dim % (2 * ROPE_AXES):
        raise CheckpointError(
            f"{file}: single_blocks.0.norm.query_norm.scale gives heads of {head_dim}, "
            f"which do not divide the width {hidden} or cannot hold {ROPE_AXES} rotary axes"
        )
    # The input of a single block's last layer is the output of attention followed by that of the feed-forward.
    mlp_and_hidden = _shape(shapes, "single_blocks.0.linear2.weight", 2, file)[1]
    return {
        "in_channels": in_channels,
        "out_channels": _shape(shapes, "final_layer.linear.weight", 2, file)[0],
        "num_layers": _count(shapes, "double_blocks."),
        "num_single_layers": _count(shapes, "single_blocks."),
        "attention_head_dim": head_dim,
        "num_attention_heads": hidden // head_dim,
        "joint_attention_dim": _shape(shapes, "txt_in.weight", 2, file)[1],
        "timestep_guidance_channels": _shape(shapes, "time_in.in_layer.weight", 2, file)[1],
        "mlp_ratio": (mlp_and_hidden - hidden) / hidden,
        "axes_dims_rope": (head_dim // ROPE_AXES,) * ROPE_AXES,
        "rope_theta": ROPE_THETA,
        # Only [dev] has this embedder; guidance of [klein] needs a second pass.
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def autoencoder_config(shapes: Shapes, *, file: str) -> dict[str, Any]:
    """Return the arguments of diffusers' AutoencoderKLFlux2, whose decoder may be narrower than its encoder.

    Raises:
        CheckpointError: this is not a FLUX.2 autoencoder; the message names the tensor that shows it.
    """
    levels = _count(shapes, "encoder.down.")
    encoder = _widths(shapes, "encoder.down", levels, file)
    decoder = _widths(shapes, "decoder.up", levels, file)
    return {
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4, file)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4, file)[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": encoder,
        # Only the small decoder differs from its encoder.
        "decoder_block_out_channels": decoder if decoder != encoder else None,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "latent_channels": _shape(shapes, "decoder.conv_in.weight", 4, file)[1],
    }


def _widths(shapes: Shapes, stage: str, levels: int, file: str) -> tuple[int, ...]:
    return tuple(_shape(shapes, f"{stage}.{level}.block.0.conv1.weight", 4, file)[0] for level in range(levels))


def _shape(shapes: Shapes, name: str, ndim: int, file: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(
            f"{file} has no tensor {name!r}, so it is not a FLUX.2 file in Black Forest Labs' layout; check "
            "FLUX2_MODEL_PATH"
        )
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise CheckpointError(f"{file}: tensor {name!r} has shape {list(shapes[name])}, not {ndim} sizes of 1 or more")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    """Count the numbered children of `prefix`."""
    # A gap in the numbers shows as a missing tensor when the module is filled.
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})
