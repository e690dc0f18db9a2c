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
from worker.checkpoint.locate import ModuleSource, Source, find
from worker.checkpoint.reader import Reader, Region
from worker.checkpoint.revision import revision_of
from worker.checkpoint.tensor_names import Origin
from worker.kernels.toolchain import triton_unavailable_reason
from worker.model import architecture, rounding
from worker.model.compile import compile_blocks
from worker.model.components import Components
from worker.model.fp8 import fast_layers, make_fast
from worker.model.placement import (
    Needs,
    Placement,
    TextEncoderPlace,
    adapted_bytes,
    explain,
    free_bytes,
    place,
    weight_bytes,
)
from worker.model.precision import PRECISIONS, SMALLEST_EXACT, PrecisionPolicy, WeightStorage
from worker.model.qfloat8 import quantize
from worker.model.text_encoder import (
    family_of,
    load_text_encoder,
    load_tokenizer,
    size_of,
    stream,
    stream_text_encoder,
    text_encoder_files,
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
    source = find(settings, hf_token=hf_token)
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
    if (placement.text_encoder, placement.clean) == ("streamed", "file"):
        for file in source.transformer.weights:  # before the text encoder's, where the host has no room for both
            reader.lock(file)
    text_encoder = _text_encoder(source.text_encoder, text_policy, reader, device, placement.text_encoder)
    reader.keep_only(_read_again(placement, source, policy=policy))
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
        extra={"revision": components.revision, "layout": source.transformer.layout, "precision": components.precisions,
               "device": str(device), "load_s": {name: round(took, 2) for name, took in components.load_s.items()}},
    )  # fmt: skip
    return components


def _place(source: Source, settings: ModelSettings, device: torch.device) -> Placement:
    """Decide where the parts go, from the files' headers.

    Raises:
        CheckpointError: the device is too small.
    """
    free = free_bytes(device, limit_gb=settings.memory_gb)
    policy, text = PRECISIONS[settings.precision], settings.text_encoder_precision
    needs = _needs(source, policy, policy.text_encoder_policy(text))
    placement = place(needs, free=free, text_encoder=settings.text_encoder_place, clean=settings.clean_weights)
    if placement is None:
        assert free is not None
        float8 = None
        if policy.storage is WeightStorage.DENSE:
            float8 = _needs(source, SMALLEST_EXACT, SMALLEST_EXACT.text_encoder_policy(text))
        raise explain(
            needs, free=free, model=settings.id, precision=settings.precision, device=str(device), float8=float8,
            text_encoder=settings.text_encoder_place, clean=settings.clean_weights,
        )  # fmt: skip
    return placement


def _needs(source: Source, policy: PrecisionPolicy, text: PrecisionPolicy) -> Needs:
    dtype, float8 = policy.dtype, policy.storage is WeightStorage.QFLOAT8
    shapes = source.transformer.open().shapes
    adapted = adapted_bytes(shapes, dtype=dtype)
    autoencoder = source.autoencoder.open().shapes
    text_sizes = size_of(source.text_encoder, dtype=text.dtype, float8=text.storage is WeightStorage.QFLOAT8)
    return Needs(
        transformer=weight_bytes(shapes.values(), dtype=dtype, float8=float8)
        - (adapted // 2 if policy.storage is WeightStorage.FP8 else 0),
        autoencoder=weight_bytes(autoencoder.values(), dtype=dtype, float8=False),
        text_encoder=text_sizes.whole,
        text_embedding=text_sizes.embedding,
        text_layer=text_sizes.layer,
        text_layers=text_sizes.layers,
        adapted=adapted if policy.can_merge else 0,
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


def _read_again(placement: Placement, source: Source, *, policy: PrecisionPolicy) -> set[Path]:
    """Return the files that are read for as long as the model lives."""
    files: set[Path] = set()
    if placement.clean == "file" or policy.rereads_weights:
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
    free = free_bytes(device, limit_gb=settings.memory_gb)
    whole = weight_bytes(source.open().shapes.values(), dtype=dtype, float8=False)
    fits = free is None or free > whole + _LAYER_BYTES
    transformer = _on(device if fits else torch.device("cpu"), load, source, dtype, reader)
    regions = _regions(source, transformer)
    make_fast(transformer, device=device)
    if missing := fast_layers(transformer).keys() - regions.keys():
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
        model = stream_text_encoder(folder, device=device, dtype=policy.dtype, reader=reader)
    else:
        model = _in_precision(load, folder, policy, torch.device("cpu"), reader)
        stream(model, device=device)
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
    rounding.make_transformer_exact(transformer)
    origins = _origins(source, transformer, tensor_names.transformer_origins)
    fill(transformer, files, origins, device=device, dtype=dtype, reader=reader)
    if shared_qkv:
        rounding.share_qkv(transformer)
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
    rounding.make_autoencoder_exact(autoencoder)
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
