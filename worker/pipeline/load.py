"""Load a base model: find the files, build the modules their tensors describe, fill them."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

from shared.catalog import MODELS
from shared.errors import CheckpointError
from shared.settings import ModelSettings
from worker.pipeline import architecture, bfl, exact
from worker.pipeline.bfl import Origin
from worker.pipeline.compiled import compile_blocks
from worker.pipeline.components import DTYPES, Components
from worker.pipeline.placement import Needs, Placement, adapted_bytes, explain, free_bytes, place, weight_bytes
from worker.pipeline.quantize import quantize
from worker.pipeline.reading import Region
from worker.pipeline.revision import revision_of
from worker.pipeline.source import ModuleSource, Source, find
from worker.pipeline.text_encoder import family_of, load_text_encoder, load_tokenizer, size_of, stream
from worker.pipeline.weights import Tensors, fill, regions

logger = logging.getLogger("flux2.worker.pipeline")


def load_components(settings: ModelSettings, *, device: torch.device, hf_token: str | None) -> Components:
    """Load everything that `settings` names onto `device`.

    Raises:
        CheckpointError: files are missing, incomplete, unreadable or do not belong together.
    """
    started = time.perf_counter()
    source = find(settings, hf_token=hf_token)
    text_precision = settings.text_encoder_precision or settings.precision
    placement = _place(source, settings, device)
    logger.info("placed", extra={"model": settings.id, "device": str(device), "placement": str(placement)})
    # Quantising replaces the linear layers, and live adapters hook into them one by one.
    load = partial(load_transformer, shared_qkv=settings.precision != "qfloat8")
    transformer = _in_precision(load, source.transformer, settings.precision, device)
    autoencoder = load_autoencoder(source.autoencoder, device=device, dtype=DTYPES[settings.precision])
    load = partial(load_text_encoder, to_be_quantised=text_precision == "qfloat8")
    streamed = placement.text_encoder == "streamed"
    text_encoder = _in_precision(load, source.text_encoder, text_precision, torch.device("cpu") if streamed else device)
    if streamed:
        stream(text_encoder, device=device)
    components = Components(
        model=settings.id,
        transformer=transformer,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(source.text_encoder, family=family_of(text_encoder.config)),
        layers=bfl.layer_shapes(transformer),
        revision=revision_of(source.files(), commit=source.commit),
        precision=settings.precision,
        device=device,
        text_encoder_precision=text_precision,
        placement=placement,
        regions=_regions(source.transformer, transformer),
    )
    _check_fit(components)
    if settings.compile:
        compile_blocks(transformer)
    logger.info(
        "model loaded",
        extra={"revision": components.revision, "layout": source.transformer.layout, "precision": components.precisions,
               "device": str(device), "load_s": round(time.perf_counter() - started, 1)},
    )  # fmt: skip
    return components


def _place(source: Source, settings: ModelSettings, device: torch.device) -> Placement:
    """Decide where the parts go, from the files' headers.

    Raises:
        CheckpointError: the device is too small.
    """
    free = free_bytes(device, limit_gb=settings.memory_gb)
    needs = _needs(source, settings.precision, settings.text_encoder_precision)
    placement = place(needs, free=free, text_encoder=settings.text_encoder_place, clean=settings.clean_weights)
    if placement is None:
        assert free is not None
        float8 = None if settings.precision == "qfloat8" else _needs(source, "qfloat8", settings.text_encoder_precision)
        raise explain(
            needs, free=free, model=settings.id, precision=settings.precision, device=str(device), float8=float8
        )
    return placement


def _needs(source: Source, precision: str, text_precision: str | None) -> Needs:
    dtype, float8 = DTYPES[precision], precision == "qfloat8"
    shapes = source.transformer.open().shapes
    autoencoder = source.autoencoder.open().shapes
    text = text_precision or precision
    whole, layer, layers = size_of(source.text_encoder, dtype=DTYPES[text], float8=text == "qfloat8")
    return Needs(
        transformer=weight_bytes(shapes.values(), dtype=dtype, float8=float8),
        autoencoder=weight_bytes(autoencoder.values(), dtype=dtype, float8=False),
        text_encoder=whole,
        text_layer=layer,
        text_layers=layers,
        adapted=0 if float8 else adapted_bytes(shapes, dtype=dtype),
    )


def _in_precision(load: Any, source: Any, precision: str, device: torch.device) -> Any:
    """Run one of the loaders; what is quantised is read to the host first, so that the device holds the result only."""
    if precision != "qfloat8":
        return load(source, device=device, dtype=DTYPES[precision])
    model = load(source, device=torch.device("cpu"), dtype=DTYPES[precision])
    quantize(model, device=device)
    return model


def load_transformer(source: ModuleSource, *, device: torch.device, dtype: torch.dtype, shared_qkv: bool = True) -> Any:
    """Return a Flux2Transformer2DModel whose arithmetic is AI Toolkit's.

    Args:
        shared_qkv: False leaves query, key and value layers to be called one by one, so that they can be replaced.

    Raises:
        CheckpointError: see `worker.pipeline.weights.fill`.
    """
    files = source.open()
    transformer = _build(Flux2Transformer2DModel, source, architecture.transformer_config, files)
    exact.make_transformer_exact(transformer)
    fill(transformer, files, _origins(source, transformer, bfl.transformer_origins), device=device, dtype=dtype)
    if shared_qkv:
        exact.share_qkv(transformer)
    return transformer


def load_autoencoder(source: ModuleSource, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Return an AutoencoderKLFlux2 whose arithmetic is AI Toolkit's.

    Raises:
        CheckpointError: see `worker.pipeline.weights.fill`.
    """
    files = source.open()
    autoencoder = _build(AutoencoderKLFlux2, source, architecture.autoencoder_config, files)
    exact.make_autoencoder_exact(autoencoder)
    fill(autoencoder, files, _origins(source, autoencoder, bfl.autoencoder_origins), device=device, dtype=dtype)
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


def _regions(source: ModuleSource, transformer: Any) -> dict[str, tuple[Region, ...]]:
    return regions(transformer, source.open(), _origins(source, transformer, bfl.transformer_origins))


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
