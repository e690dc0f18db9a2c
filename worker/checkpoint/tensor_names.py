"""How Black Forest Labs name FLUX.2's tensors, and where each of them lies in diffusers' modules.

Checkpoints and adapters speak BFL's names; the modules that run are diffusers'. This table is the one place where the
two meet: `worker.model.load` reads checkpoints through it and `worker.lora.merge` finds weights through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Origin:
    """Where a diffusers tensor comes from: parts of one BFL tensor's rows, in this order.

    Attributes:
        tensor: BFL's name; in the tables below, of the module without its last name.
        parts: which of `of` equal parts of the rows, e.g. (1, 0) of 2 swaps the halves.
        leaf: BFL's last name where it is not diffusers'.
    """

    tensor: str
    parts: tuple[int, ...] = (0,)
    of: int = 1
    leaf: str | None = None

    def select_rows(self, tensor: Tensor) -> Tensor:
        """Pick this origin's rows of a BFL tensor, or of an update to one; a view where the rows are adjacent."""
        if self.of == 1:
            return tensor
        rows = tensor.chunk(self.of)
        picked = [rows[part] for part in self.parts]
        return picked[0] if len(picked) == 1 else torch.cat(picked)


class LayerPart(NamedTuple):
    """One diffusers parameter that holds rows of a BFL linear layer."""

    parameter: str
    origin: Origin


_TRANSFORMER = {
    "x_embedder": Origin("img_in"),
    "context_embedder": Origin("txt_in"),
    "time_guidance_embed.timestep_embedder.linear_1": Origin("time_in.in_layer"),
    "time_guidance_embed.timestep_embedder.linear_2": Origin("time_in.out_layer"),
    "time_guidance_embed.guidance_embedder.linear_1": Origin("guidance_in.in_layer"),
    "time_guidance_embed.guidance_embedder.linear_2": Origin("guidance_in.out_layer"),
    "double_stream_modulation_img.linear": Origin("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": Origin("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": Origin("single_stream_modulation.lin"),
    # BFL's rows are shift, scale; diffusers' are scale, shift.
    "norm_out.linear": Origin("final_layer.adaLN_modulation.1", parts=(1, 0), of=2),
    "proj_out": Origin("final_layer.linear"),
}

_DOUBLE_BLOCK = {
    "attn.to_q": Origin("img_attn.qkv", parts=(0,), of=3),
    "attn.to_k": Origin("img_attn.qkv", parts=(1,), of=3),
    "attn.to_v": Origin("img_attn.qkv", parts=(2,), of=3),
    "attn.norm_q": Origin("img_attn.norm.query_norm", leaf="scale"),
    "attn.norm_k": Origin("img_attn.norm.key_norm", leaf="scale"),
    "attn.to_out.0": Origin("img_attn.proj"),
    "ff.linear_in": Origin("img_mlp.0"),
    "ff.linear_out": Origin("img_mlp.2"),
    "attn.add_q_proj": Origin("txt_attn.qkv", parts=(0,), of=3),
    "attn.add_k_proj": Origin("txt_attn.qkv", parts=(1,), of=3),
    "attn.add_v_proj": Origin("txt_attn.qkv", parts=(2,), of=3),
    "attn.norm_added_q": Origin("txt_attn.norm.query_norm", leaf="scale"),
    "attn.norm_added_k": Origin("txt_attn.norm.key_norm", leaf="scale"),
    "attn.to_add_out": Origin("txt_attn.proj"),
    "ff_context.linear_in": Origin("txt_mlp.0"),
    "ff_context.linear_out": Origin("txt_mlp.2"),
}

_SINGLE_BLOCK = {
    "attn.to_qkv_mlp_proj": Origin("linear1"),
    "attn.to_out": Origin("linear2"),
    "attn.norm_q": Origin("norm.query_norm", leaf="scale"),
    "attn.norm_k": Origin("norm.key_norm", leaf="scale"),
}

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def transformer_origins(transformer: nn.Module) -> dict[str, Origin]:
    """Return the origin of every parameter of a Flux2Transformer2DModel.

    Source:
        The same pairs as convert_flux2_transformer_checkpoint_to_diffusers in diffusers'
        loaders/single_file_utils.py, written as data so that updates can be addressed as well as tensors loaded.
    """
    modules = dict(_TRANSFORMER)
    for kind, ours, block in (
        ("transformer_blocks", "double_blocks", _DOUBLE_BLOCK),
        ("single_transformer_blocks", "single_blocks", _SINGLE_BLOCK),
    ):
        for index in range(len(transformer.get_submodule(kind))):  # type: ignore[arg-type]
            for module, origin in block.items():
                modules[f"{kind}.{index}.{module}"] = replace(origin, tensor=f"{ours}.{index}.{origin.tensor}")
    return _by_tensor(transformer, modules)


def autoencoder_origins(autoencoder: nn.Module) -> dict[str, Origin]:
    """Return the origin of every parameter and buffer of an AutoencoderKLFlux2.

    Source:
        scripts/convert_flux2_to_diffusers.py of diffusers: BFL number the up blocks from the image inwards and keep
        the quantisation convolutions inside the encoder and decoder.
    """
    modules = {"bn": "bn", "quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    for side, stage, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        modules |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        modules |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
        modules |= _inside(_RESNET, f"{side}.mid_block.resnets.0", f"{side}.mid.block_1")
        modules |= _inside(_ATTENTION, f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")
        modules |= _inside(_RESNET, f"{side}.mid_block.resnets.1", f"{side}.mid.block_2")
        blocks = list(autoencoder.get_submodule(f"{side}.{stage}_blocks").children())
        for index, block in enumerate(blocks):
            level = index if side == "encoder" else len(blocks) - 1 - index
            name, ours = f"{side}.{stage}_blocks.{index}", f"{side}.{stage}.{level}"
            modules[f"{name}.{sampler}rs.0.conv"] = f"{ours}.{sampler}.conv"
            for resnet in range(len(block.resnets)):  # type: ignore[arg-type]
                modules |= _inside(_RESNET, f"{name}.resnets.{resnet}", f"{ours}.block.{resnet}")
    return _by_tensor(autoencoder, {module: Origin(ours) for module, ours in modules.items()})


def layer_parts(transformer: nn.Module) -> dict[str, tuple[LayerPart, ...]]:
    """Return, for each BFL linear layer, the parameters that together hold its weight.

    These are all the layers an adapter may name, by module path without `.weight`.
    """
    parameters = dict(transformer.named_parameters())
    parts: dict[str, tuple[LayerPart, ...]] = {}
    for name, origin in transformer_origins(transformer).items():
        if parameters[name].ndim == 2:
            layer = origin.tensor.removesuffix(".weight")
            parts[layer] = (*parts.get(layer, ()), LayerPart(name, origin))
    return parts


def layer_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each BFL linear layer."""
    parameters = dict(transformer.named_parameters())
    return {
        layer: (sum(parameters[part.parameter].shape[0] for part in parts), parameters[parts[0].parameter].shape[1])
        for layer, parts in layer_parts(transformer).items()
    }


def tensor_parts(module: nn.Module, origins: Mapping[str, Origin]) -> dict[str, tuple[Tensor, ...]]:
    """Return the parts of each BFL tensor, in the order of its rows, where they lie in a module of diffusers'."""
    state, pieces = module.state_dict(), dict[str, dict[int, Tensor]]()
    for name, origin in origins.items():
        parts = state[name].chunk(len(origin.parts)) if len(origin.parts) > 1 else (state[name],)
        pieces.setdefault(origin.tensor, {}).update(zip(origin.parts, parts, strict=True))
    return {name: tuple(found[part] for part in sorted(found)) for name, found in pieces.items()}


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return parts as one tensor: a view where each lies behind the one before it in one storage, else a copy."""
    first = parts[0]
    if len(parts) == 1:
        return first
    adjacent = all(
        later.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
        and later.storage_offset() == part.storage_offset() + part.numel()
        for part, later in pairwise(parts)
    )
    if not adjacent:
        return torch.cat(list(parts))
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride(), first.storage_offset())


def _inside(names: Mapping[str, str], module: str, ours: str) -> dict[str, str]:
    return {f"{module}.{name}": f"{ours}.{our_name}" for name, our_name in names.items()}


def _by_tensor(module: nn.Module, modules: Mapping[str, Origin]) -> dict[str, Origin]:
    """Complete the origins of modules to those of the tensors that `module` really has."""
    origins: dict[str, Origin] = {}
    for name in module.state_dict():
        path, _, leaf = name.rpartition(".")
        origin = modules[path]
        origins[name] = replace(origin, tensor=f"{origin.tensor}.{origin.leaf or leaf}", leaf=None)
    return origins
