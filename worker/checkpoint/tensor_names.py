"""Map each parameter of diffusers' modules to the tensor of Black Forest Labs' files that holds it.

Checkpoints and adapters use Black Forest Labs' (BFL's) names; the modules that run are diffusers'. The loader reads
checkpoints through this map, and an adapter swap finds the weights of a layer through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.layer_names import DOUBLE_BLOCK_LAYERS, LAYERS, SINGLE_BLOCK_LAYERS, WHOLE, Rows, Target


@dataclass(frozen=True)
class Origin:
    """The BFL tensor, and its rows, that one diffusers tensor holds.

    Attributes:
        tensor: BFL's name; the tables below leave out its last part, the tensor's name inside its module.
        parts: numbers of equal parts of the rows, in order; (1, 0) exchanges two halves.
        part_count: number of equal parts that the rows are divided into.
        leaf: BFL's name of the tensor inside its module, if diffusers uses another.
    """

    tensor: str
    parts: tuple[int, ...] = (0,)
    part_count: int = 1
    leaf: str | None = None

    def select_rows(self, tensor: Tensor) -> Tensor:
        """Return this origin's rows of a BFL tensor, or of an update to one; a view if the rows are adjacent."""
        if self.part_count == 1:
            return tensor
        rows = tensor.chunk(self.part_count)
        picked = [rows[part] for part in self.parts]
        return picked[0] if len(picked) == 1 else torch.cat(picked)


class LayerPart(NamedTuple):
    """A diffusers parameter that holds rows of a BFL linear layer."""

    parameter: str
    origin: Origin


class WrittenRows(NamedTuple):
    """The rows of a diffusers parameter that an update of its BFL layer changes.

    Attributes:
        source: picks the parameter's rows of the update.
        part: the parameter's rows that change, adjacent; `WHOLE` for all of them.
    """

    parameter: str
    source: Origin
    part: Rows = WHOLE

    def select(self, tensor: Tensor) -> Tensor:
        """Return a view of the rows that change, of the parameter or of a tensor with as many rows."""
        if self.part == WHOLE:
            return tensor
        start = len(tensor) * self.part.parts[0] // self.part.part_count
        return tensor[start : start + self.part.of(len(tensor))]


def _origins(layers: Mapping[str, Target]) -> dict[str, Origin]:
    return {module: Origin(target.layer, *target.rows) for module, target in layers.items()}


# Modules of diffusers' transformer. No adapter names a norm, because norms are not linear layers: they are only here.
_TRANSFORMER = _origins(LAYERS)
_DOUBLE_BLOCK = _origins(DOUBLE_BLOCK_LAYERS) | {
    "attn.norm_q": Origin("img_attn.norm.query_norm", leaf="scale"),
    "attn.norm_k": Origin("img_attn.norm.key_norm", leaf="scale"),
    "attn.norm_added_q": Origin("txt_attn.norm.query_norm", leaf="scale"),
    "attn.norm_added_k": Origin("txt_attn.norm.key_norm", leaf="scale"),
}
_SINGLE_BLOCK = _origins(SINGLE_BLOCK_LAYERS) | {
    "attn.norm_q": Origin("norm.query_norm", leaf="scale"),
    "attn.norm_k": Origin("norm.key_norm", leaf="scale"),
}

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def transformer_origins(transformer: nn.Module) -> dict[str, Origin]:
    """Return the origin of every parameter of a Flux2Transformer2DModel."""
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
        scripts/convert_flux2_to_diffusers.py of diffusers. BFL number the up blocks from the image inwards and put the
        quantisation convolutions inside the encoder and decoder.
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
            # BFL number the decoder's stages from the image inwards.
            level = index if side == "encoder" else len(blocks) - 1 - index
            name, ours = f"{side}.{stage}_blocks.{index}", f"{side}.{stage}.{level}"
            modules[f"{name}.{sampler}rs.0.conv"] = f"{ours}.{sampler}.conv"
            for resnet in range(len(block.resnets)):  # type: ignore[arg-type]
                modules |= _inside(_RESNET, f"{name}.resnets.{resnet}", f"{ours}.block.{resnet}")
    return _by_tensor(autoencoder, {module: Origin(ours) for module, ours in modules.items()})


def layer_parts(transformer: nn.Module) -> dict[str, tuple[LayerPart, ...]]:
    """Return, for each BFL linear layer, the parameters that together hold its weight.

    Keys are module paths without `.weight`: every layer that an adapter may name.
    """
    parameters = dict(transformer.named_parameters())
    parts: dict[str, tuple[LayerPart, ...]] = {}
    for name, origin in transformer_origins(transformer).items():
        # Only linear layers have two dimensions; the weight of a norm has one.
        if parameters[name].ndim == 2:
            layer = origin.tensor.removesuffix(".weight")
            parts[layer] = (*parts.get(layer, ()), LayerPart(name, origin))
    return parts


def written_rows(parts: Sequence[LayerPart], rows: Rows) -> tuple[WrittenRows, ...]:
    """Return the parameters that an update of some rows of a BFL layer writes.

    Args:
        parts: the layer's parameters.
    """
    if rows == WHOLE:
        return tuple(WrittenRows(part.parameter, part.origin) for part in parts)
    for part in parts:
        # An update of exactly one parameter's rows has them in the parameter's order.
        if (part.origin.parts, part.origin.part_count) == rows:
            return (WrittenRows(part.parameter, Origin(part.origin.tensor)),)
    # Otherwise one parameter holds the layer: OneTrainer's parts of linear1 are rows of diffusers' one parameter.
    (part,) = parts
    return (WrittenRows(part.parameter, Origin(part.origin.tensor), rows),)


def layer_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each BFL linear layer."""
    parameters = dict(transformer.named_parameters())
    return {
        layer: (sum(parameters[part.parameter].shape[0] for part in parts), parameters[parts[0].parameter].shape[1])
        for layer, parts in layer_parts(transformer).items()
    }


def tensor_parts(module: nn.Module, origins: Mapping[str, Origin]) -> dict[str, tuple[Tensor, ...]]:
    """Return each BFL tensor as the list of parts that a diffusers module holds, in the order of the rows."""
    state, pieces = module.state_dict(), dict[str, dict[int, Tensor]]()
    for name, origin in origins.items():
        parts = state[name].chunk(len(origin.parts)) if len(origin.parts) > 1 else (state[name],)
        pieces.setdefault(origin.tensor, {}).update(zip(origin.parts, parts, strict=True))
    return {name: tuple(found[part] for part in sorted(found)) for name, found in pieces.items()}


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return parts as one tensor: a view if they follow each other in one storage, otherwise a copy."""
    first = parts[0]
    if len(parts) == 1:
        return first
    adjacent = all(
        later.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
        and later.storage_offset() == part.storage_offset() + part.numel()
        for part, later in pairwise(parts)
    )
    # Query, key and value of a fused layer are adjacent, so AI Toolkit's engine shares their memory.
    if not adjacent:
        return torch.cat(list(parts))
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride(), first.storage_offset())


def _inside(names: Mapping[str, str], module: str, ours: str) -> dict[str, str]:
    return {f"{module}.{name}": f"{ours}.{our_name}" for name, our_name in names.items()}


def _by_tensor(module: nn.Module, modules: Mapping[str, Origin]) -> dict[str, Origin]:
    """Turn origins of modules into origins of the tensors that `module` has."""
    origins: dict[str, Origin] = {}
    # The module decides which tensors exist: klein has no guidance embedder, linear layers have no bias.
    for name in module.state_dict():
        path, _, leaf = name.rpartition(".")
        origin = modules[path]
        origins[name] = replace(origin, tensor=f"{origin.tensor}.{origin.leaf or leaf}", leaf=None)
    return origins
