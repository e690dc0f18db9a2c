"""Load a base model: find the files, build the modules their tensors describe, fill them."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn

from shared.catalog import MODELS
from shared.errors import CheckpointError
from shared.settings import ModelSettings
from worker.checkpoint import tensor_names
from worker.checkpoint.fill import Tensors, fill, regions
from worker.checkpoint.locate import Checkpoint, ModuleSource, locate_checkpoint
from worker.checkpoint.reader import Reader, Region
from worker.checkpoint.revision import revision_of
from worker.checkpoint.tensor_names import Origin
from worker.kernels.toolchain import triton_unavailable_reason
from worker.model import architecture, rounding
from worker.model.compile import compile_blocks
from worker.model.components import Components
from worker.model.device_memory import free_memory_bytes, limit_memory, wait_for_stable_memory
from worker.model.fp8 import convert_to_fp8, fp8_layers
from worker.model.placement import (
    Placement,
    TextEncoderPlace,
    WeightSizes,
    adaptable_bytes,
    choose_placement,
    placement_error,
    weight_bytes,
)
from worker.model.precision import PRECISIONS, SMALLEST_EXACT, PrecisionPolicy, WeightStorage
from worker.model.qfloat8 import quantize
from worker.model.text_encoder import (
    family_of,
    load_streamed_text_encoder,
    load_text_encoder,
    load_tokenizer,
    stream_from_host,
    text_encoder_files,
    text_encoder_sizes,
)

logger = logging.getLogger("flux2.worker.model")

Regions = dict[str, tuple[Region, ...]]

# Of every FLUX.2; smaller models take a step sooner than they are compiled.
_HEAD_DIM = 128
# The largest layer of FLUX.2 [dev], and what it becomes.
_LAYER_BYTES = 2_000_000_000


def load_components(settings: ModelSettings, *, device: torch.device, hf_token: str | None) -> Components:
    """Load everything that `settings` names onto `device`.

    Raises:
        CheckpointError: files are missing, incomplete, unreadable or do not belong together.
    """
    marks = {"start": time.perf_counter()}
    source = locate_checkpoint(settings, hf_token=hf_token)
    limit_memory(device, limit_gb=settings.memory_gb)
    wait_for_stable_memory(device)
    policy = PRECISIONS[settings.precision]
    text_policy = policy.text_encoder_policy(settings.text_encoder_precision)
    placement = _place(source, settings, device)
    logger.info("placed", extra={"model": settings.id, "device": str(device), "placement": str(placement)})
    reader = Reader(device)
    marks["headers"] = time.perf_counter()
    transformer, regions = _transformer(source.transformer, settings, device, reader)
    marks["transformer"] = time.perf_counter()
    autoencoder = load_autoencoder(source.autoencoder, device=device, dtype=policy.dtype, reader=reader)
    marks["autoencoder"] = time.perf_counter()
    if (placement.text_encoder, placement.base_weights) == ("streamed", "file"):
        for file in source.transformer.weights:  # before the text encoder's, where the host has no room for both
            reader.pin(file)
    text_encoder = _text_encoder(source.text_encoder, text_policy, reader, device, placement.text_encoder)
    reader.close_except(_read_again(placement, source, policy=policy))
    marks["text encoder"] = time.perf_counter()
    layers = tensor_names.layer_shapes(transformer)
    compiled = _is_compiled(settings, device, head_dim=transformer.config.attention_head_dim)
    if compiled:
        compile_blocks(transformer, exact=policy.keeps_bits)
        marks["compiler"] = time.perf_counter()
    components = Components(
        model=settings.id,
        transformer=transformer,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(source.text_encoder, family=family_of(text_encoder.config)),
        layers=layers,
        revision=revision_of(source.files(), commit=source.commit),
        precision=policy,
        device=device,
        text_encoder_precision=text_policy,
        placement=placement,
        compiled=compiled,
        load_s={name: end - began for (_, began), (name, end) in pairwise(marks.items())},
        regions=regions,
        reader=reader,
    )
    _check_fit(components)
    logger.info(
        "model loaded",
        extra={
            "revision": components.revision,
            "layout": source.transformer.layout,
            "precision": components.precision_names,
            "device": str(device),
            "load_s": {name: round(seconds, 2) for name, seconds in components.load_s.items()},
        },
    )
    return components


def _place(source: Checkpoint, settings: ModelSettings, device: torch.device) -> Placement:
    """Decide where the parts go, from the files' headers.

    Raises:
        CheckpointError: the device is too small.
    """
    free = free_memory_bytes(device, limit_gb=settings.memory_gb)
    policy, text = PRECISIONS[settings.precision], settings.text_encoder_precision
    needs = _needs(source, policy, policy.text_encoder_policy(text))
    placement = choose_placement(
        needs, free=free, text_encoder=settings.text_encoder_place, base_weights=settings.clean_weights
    )
    if placement is None:
        assert free is not None
        smaller = None
        if policy.storage is WeightStorage.DENSE:
            smaller = _needs(source, SMALLEST_EXACT, SMALLEST_EXACT.text_encoder_policy(text))
        raise placement_error(
            needs, free=free, model=settings.id, precision=settings.precision, device=str(device), smaller=smaller,
            text_encoder=settings.text_encoder_place, base_weights=settings.clean_weights,
        )  # fmt: skip
    return placement


def _needs(source: Checkpoint, policy: PrecisionPolicy, text: PrecisionPolicy) -> WeightSizes:
    dtype, float8 = policy.dtype, policy.storage is WeightStorage.QFLOAT8
    shapes = source.transformer.open().shapes
    adaptable = adaptable_bytes(shapes, dtype=dtype)
    autoencoder = source.autoencoder.open().shapes
    text_sizes = text_encoder_sizes(source.text_encoder, dtype=text.dtype, float8=text.storage is WeightStorage.QFLOAT8)
    return WeightSizes(
        transformer=weight_bytes(shapes.values(), dtype=dtype, float8=float8)
        - (adaptable // 2 if policy.storage is WeightStorage.FP8 else 0),
        autoencoder=weight_bytes(autoencoder.values(), dtype=dtype, float8=False),
        text_encoder=text_sizes.whole,
        text_embedding=text_sizes.embedding,
        text_layer=text_sizes.layer,
        text_layers=text_sizes.layers,
        adaptable=adaptable if policy.can_merge else 0,
    )


def _is_compiled(settings: ModelSettings, device: torch.device, *, head_dim: int) -> bool:
    """What was asked for; else on a GPU, for heads and precisions whose bits were compared."""
    if settings.compile is not None:
        return settings.compile
    if device.type != "cuda" or not PRECISIONS[settings.precision].compiles_by_default or head_dim != _HEAD_DIM:
        return False
    if lacks := triton_unavailable_reason():
        logger.warning("blocks are not compiled, steps take a quarter longer", extra={"lacks": lacks})
    return not lacks


def _read_again(placement: Placement, source: Checkpoint, *, policy: PrecisionPolicy) -> set[Path]:
    """Return the files that are read for as long as the model lives."""
    files: set[Path] = set()
    if placement.base_weights == "file" or policy.rereads_weights:
        files |= set(source.transformer.weights)
    if placement.text_encoder == "streamed":
        files |= set(text_encoder_files(source.text_encoder))
    return files


def _transformer(
    source: ModuleSource, settings: ModelSettings, device: torch.device, reader: Reader
) -> tuple[Any, Regions]:
    """Return the transformer, and where its weights lie in the files.

    Raises:
        CheckpointError: see `load_transformer`; or under `fp8`, whose clean weights lie nowhere else, not as they are,
            or no kernels can be built.
    """
    policy = PRECISIONS[settings.precision]
    # Quantising replaces the linear layers one by one, and live adapters hook into them.
    load = partial(load_transformer, shared_qkv=not policy.replaces_layers)
    if policy.storage is not WeightStorage.FP8:
        transformer = _in_precision(load, source, policy, device, reader)
        return transformer, _regions(source, transformer)
    if device.type == "cuda" and (lacks := triton_unavailable_reason()):
        raise CheckpointError(f"fp8 needs kernels that cannot be built here: {lacks}")
    dtype = policy.dtype
    free = free_memory_bytes(device, limit_gb=settings.memory_gb)
    whole = weight_bytes(source.open().shapes.values(), dtype=dtype, float8=False)
    fits = free is None or free > whole + _LAYER_BYTES
    transformer = _on(device if fits else torch.device("cpu"), load, source, dtype, reader)
    regions = _regions(source, transformer)
    convert_to_fp8(transformer, device=device)
    if missing := fp8_layers(transformer).keys() - regions.keys():
        raise CheckpointError(f"{source.open().name}: fp8 is made from bf16 weights, and {min(missing)} is none there")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return transformer, regions


def _text_encoder(
    folder: Path, policy: PrecisionPolicy, reader: Reader, device: torch.device, place: TextEncoderPlace
) -> nn.Module:
    """Return the text encoder where it is to be."""
    load = partial(load_text_encoder, to_be_quantised=policy.replaces_layers)
    model: nn.Module
    if place == "resident":
        model = _in_precision(load, folder, policy, device, reader)
    elif not policy.replaces_layers:
        model = load_streamed_text_encoder(folder, device=device, dtype=policy.dtype, reader=reader)
    else:
        model = _in_precision(load, folder, policy, torch.device("cpu"), reader)
        stream_from_host(model, device=device)
    return model


def _in_precision(load: Any, source: Any, policy: PrecisionPolicy, device: torch.device, reader: Reader) -> Any:
    """Run one of the loaders; what is quantised is read to the host first, so that the device holds the result only."""
    if not policy.replaces_layers:
        return _on(device, load, source, policy.dtype, reader)
    model = _on(torch.device("cpu"), load, source, policy.dtype, reader)
    quantize(model, device=device)
    return model


def _on(device: torch.device, load: Any, source: Any, dtype: torch.dtype, reader: Reader) -> Any:
    """Run one of the loaders with the reader if that is this device's."""
    return load(source, device=device, dtype=dtype, reader=reader if reader.device == device else None)


def load_transformer(
    source: ModuleSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    shared_qkv: bool = True,
    reader: Reader | None = None,
) -> Any:
    """Return a Flux2Transformer2DModel whose arithmetic is AI Toolkit's.

    Args:
        reader: see `worker.checkpoint.fill.fill`.
        shared_qkv: False leaves query, key and value layers to be called one by one, so that they can be replaced.

    Raises:
        CheckpointError: see `worker.checkpoint.fill.fill`.
    """
    files = source.open()
    transformer = _build(Flux2Transformer2DModel, source, architecture.transformer_config, files)
    rounding.match_transformer_rounding(transformer)
    origins = _origins(source, transformer, tensor_names.transformer_origins)
    fill(transformer, files, origins, device=device, dtype=dtype, reader=reader)
    if shared_qkv:
        rounding.fuse_qkv(transformer)
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


def _build(kind: Any, source: ModuleSource, read_shapes: Any, files: Tensors) -> Any:
    """Construct a module without memory, from a config.json or from the tensors' shapes."""
    with torch.device("meta"):
        if source.config is None:
            return kind(**read_shapes(files.shapes, file=files.name))
        return kind.from_config(_read_config(source.config))


def _read_config(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON") from error


def _origins(source: ModuleSource, module: Any, bfl_origins: Any) -> dict[str, Origin]:
    if source.layout == "bfl":
        origins: dict[str, Origin] = bfl_origins(module)
        return origins
    return {name: Origin(name) for name in module.state_dict()}


def _regions(source: ModuleSource, transformer: Any) -> Regions:
    return regions(transformer, source.open(), _origins(source, transformer, tensor_names.transformer_origins))


def _check_fit(components: Components) -> None:
    """Hold the three models to each other's widths; else the first image would fail, after a claim."""
    latents, packed = components.transformer.config.in_channels, components.autoencoder.bn.num_features
    if latents != packed:
        raise CheckpointError(f"the transformer takes {latents} latent channels and the autoencoder packs {packed}")
    embedding = components.text_encoder.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    takes = components.transformer.config.joint_attention_dim
    gives = len(family_of(components.text_encoder.config).hidden_states) * embedding
    if takes != gives:
        raise CheckpointError(f"the transformer reads prompts {takes} wide and the text encoder gives {gives}")
    if components.distilled == MODELS[components.model].uses_negative_prompt:
        has = "has" if components.distilled else "has no"
        raise CheckpointError(f"the transformer {has} guidance embedder, so it is not {components.model!r}")
