"""Build the transformer and the autoencoder from their files, rounding where AI Toolkit's modules do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn

from shared.errors import CheckpointError
from worker.checkpoint import tensor_names
from worker.checkpoint.fill import fill, regions
from worker.checkpoint.locate import ModuleSource
from worker.checkpoint.reader import Reader, Region
from worker.checkpoint.tensor_files import Tensors
from worker.checkpoint.tensor_names import Origin
from worker.model import architecture, rounding
from worker.model.fp8 import convert_to_fp8, fp8_layers

Regions = Mapping[str, tuple[Region, ...]]


def load_transformer(
    source: ModuleSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    fused_qkv: bool = True,
    reader: Reader | None = None,
) -> Any:
    """Return a Flux2Transformer2DModel whose arithmetic is AI Toolkit's.

    Args:
        fused_qkv: multiply by query, key and value weights at once; False if layers will be replaced one by one.
        reader: see `worker.checkpoint.fill.fill`.

    Raises:
        CheckpointError: see `worker.checkpoint.fill.fill`.
    """
    files = source.open()
    transformer, origins = _build_transformer(source, files)
    fill(transformer, files, origins, device=device, dtype=dtype, reader=reader)
    # After filling: the fused layer joins the weights of the three.
    if fused_qkv:
        rounding.fuse_qkv(transformer)
    return transformer


def load_fp8_transformer(
    source: ModuleSource, *, device: torch.device, dtype: torch.dtype, reader: Reader | None = None
) -> Any:
    """Return a Flux2Transformer2DModel whose blocks multiply in float8, quantised while their weights are read.

    Args:
        dtype: of the activations, of all other weights, and of the file's weights in the blocks.
        reader: see `worker.checkpoint.fill.fill`.

    Raises:
        CheckpointError: the files store a block's weight in another dtype; also see `worker.checkpoint.fill.fill`.
    """
    files = source.open()
    transformer, origins = _build_transformer(source, files)
    # Float8 layers return the dtype of the weights that they replace.
    for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
        blocks.to(dtype)
    convert_to_fp8(transformer)
    layers = fp8_layers(transformer)
    # `fill` reports missing tensors. Without a region a weight could not be restored after an adapter swap.
    stored = {name: origins[name].tensor for name in layers if origins[name].tensor in files.shapes}
    if others := [name for name, tensor in stored.items() if files.region(tensor, dtype) is None]:
        raise CheckpointError(
            f"{files.name}: fp8 needs weights in bf16, but the file stores {min(others)} in another dtype"
        )
    for layer in layers.values():
        layer.to_empty(device=device)
    converters = {name: layer.quantize_from for name, layer in layers.items()}
    fill(transformer, files, origins, device=device, dtype=dtype, converters=converters, reader=reader)
    return transformer


def load_autoencoder(
    source: ModuleSource, *, device: torch.device, dtype: torch.dtype, reader: Reader | None = None
) -> Any:
    """Return an AutoencoderKLFlux2 whose arithmetic is AI Toolkit's.

    Raises:
        CheckpointError: see `worker.checkpoint.fill.fill`.
    """
    files = source.open()
    autoencoder = _build(AutoencoderKLFlux2, source, architecture.autoencoder_config, files)
    rounding.match_autoencoder_rounding(autoencoder)
    origins = _origins(source, autoencoder, tensor_names.autoencoder_origins)
    fill(autoencoder, files, origins, device=device, dtype=dtype, reader=reader)
    return autoencoder


def transformer_regions(source: ModuleSource, transformer: Any, *, dtype: torch.dtype) -> Regions:
    """Return the file regions of a transformer's dense weights, without those that the files store in another dtype."""
    origins = _origins(source, transformer, tensor_names.transformer_origins)
    return regions(transformer, source.open(), origins, dtype=dtype)


def _build_transformer(source: ModuleSource, files: Tensors) -> tuple[Any, dict[str, Origin]]:
    transformer = _build(Flux2Transformer2DModel, source, architecture.transformer_config, files)
    # Before filling, which assigns by name: the replacements have parameters of the same names.
    rounding.match_transformer_rounding(transformer)
    return transformer, _origins(source, transformer, tensor_names.transformer_origins)


def _build(kind: Any, source: ModuleSource, read_shapes: Any, files: Tensors) -> Any:
    """Construct a module without memory, from its config.json or from the tensors' shapes."""
    with torch.device("meta"):
        # Black Forest Labs' files have no configuration.
        if source.config is None:
            return kind(**read_shapes(files.shapes, file=files.name))
        return kind.from_config(_read_config(source.config))


def _read_config(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON") from error


def _origins(
    source: ModuleSource, module: nn.Module, bfl_origins: Callable[[nn.Module], dict[str, Origin]]
) -> dict[str, Origin]:
    # Diffusers' files use the names of its modules.
    if source.layout == "bfl":
        return bfl_origins(module)
    return {name: Origin(name) for name in module.state_dict()}
