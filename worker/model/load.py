"""Load a base model: locate its files, choose where its parts go, load them, and check that they fit together."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from shared.catalog import MODELS
from shared.errors import CheckpointError
from shared.settings import ModelSettings
from worker.checkpoint import tensor_names
from worker.checkpoint.locate import Checkpoint, locate_checkpoint
from worker.checkpoint.reader import Reader
from worker.kernels.toolchain import triton_unavailable_reason
from worker.model.compile import compile_blocks
from worker.model.components import Components
from worker.model.device_memory import limit_memory, wait_for_stable_memory
from worker.model.fp8 import set_float8_attention
from worker.model.fp8_attention import float8_attention_lacks, multiplies_float8_fast
from worker.model.part_loader import PartLoader
from worker.model.placement import Placement
from worker.model.precision import PRECISIONS, PrecisionPolicy
from worker.model.rotary_norm import HEAD_WIDTH
from worker.model.sizes import placement_for
from worker.model.text_encoder import family_of
from worker.model.tokenizer import load_tokenizer

logger = logging.getLogger("flux2.worker.model")


def load_components(settings: ModelSettings, *, device: torch.device, hf_token: str | None) -> Components:
    """Load the model that `settings` describes onto `device`.

    Raises:
        CheckpointError: files are missing, incomplete, unreadable or do not belong together, or do not fit the device.
    """
    times = _LoadTimes()
    # Before anything is allocated, so that the placement sees the memory that this process may really use.
    limit_memory(device, limit_gb=settings.memory_gb)
    wait_for_stable_memory(device)
    checkpoint = locate_checkpoint(settings, hf_token=hf_token)
    placement = placement_for(checkpoint, settings, device=device)
    logger.info("placement chosen", extra={"model": settings.id, "device": str(device), "placement": str(placement)})
    times.end("headers")
    components = _load_parts(checkpoint, settings, placement, device=device, times=times)
    _check_fit(components)
    _log_loaded(components, checkpoint)
    return components


def _load_parts(
    checkpoint: Checkpoint, settings: ModelSettings, placement: Placement, *, device: torch.device, times: _LoadTimes
) -> Components:
    policy = PRECISIONS[settings.precision]
    text_policy = policy.text_encoder_policy(settings.text_encoder_precision)
    reader = Reader(device)
    loader = PartLoader(device, reader)
    transformer, regions = loader.load_transformer(checkpoint.transformer, policy)
    times.end("transformer")
    autoencoder = loader.load_autoencoder(checkpoint.autoencoder, policy)
    times.end("autoencoder")
    if (placement.text_encoder, placement.base_weights) == ("streamed", "file"):
        # Before the text encoder's files, in case the host has room for only one of the two.
        for file in checkpoint.transformer.weights:
            reader.pin(file)
    text_encoder = loader.load_text_encoder(checkpoint.text_encoder, text_policy, placement.text_encoder)
    # The other files are not read again.
    reader.close_except(_reread_files(placement, checkpoint, policy))
    times.end("text encoder")
    layers = tensor_names.layer_shapes(transformer)
    if _attends_in_float8(settings, device, transformer.config):
        set_float8_attention(transformer, enabled=True)
    compiled = _compiles(settings, device, head_dim=transformer.config.attention_head_dim)
    if compiled:
        # Only marks the blocks: each kind compiles at its first call, in `Renderer.warm_up`.
        compile_blocks(transformer, exact=policy.keeps_bits)
        times.end("compiler")
    return Components(
        model=settings.id,
        transformer=transformer,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(checkpoint.text_encoder.folder, family=family_of(text_encoder.config)),
        layers=layers,
        revision=checkpoint.revision(),
        precision=policy,
        device=device,
        text_encoder_precision=text_policy,
        placement=placement,
        compiled=compiled,
        load_s=times.seconds,
        regions=regions,
        reader=reader,
    )


class _LoadTimes:
    """Seconds of loading, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, part: str) -> None:
        """Record the time since the previous part ended as this part's."""
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now


def _compiles(settings: ModelSettings, device: torch.device, *, head_dim: int) -> bool:
    """Return the setting `compile`, or its default for this device and model."""
    if settings.compile is not None:
        return settings.compile
    # By default only where the bits of compiled blocks were compared with those of the modules. Tiny models, with
    # narrower heads, would take longer to compile than to run.
    policy = PRECISIONS[settings.precision]
    if device.type != "cuda" or not policy.compiles_by_default or head_dim != HEAD_WIDTH:
        return False
    if reason := triton_unavailable_reason():
        logger.warning("blocks are not compiled, steps take a quarter longer", extra={"reason": reason})
    return not reason


def _attends_in_float8(settings: ModelSettings, device: torch.device, config: Any) -> bool:
    """Return whether attention runs in float8.

    Raises:
        CheckpointError: the settings ask for it, and it cannot.
    """
    policy, chosen = PRECISIONS[settings.precision], settings.attention
    by_default = policy.attends_in_float8 and multiplies_float8_fast(device)
    if chosen == "bf16" or (chosen is None and not by_default):
        return False
    lacks: str | None = "FLUX2_MODEL_PRECISION=fp8"
    if policy.attends_in_float8:
        lacks = float8_attention_lacks(device, heads=config.num_attention_heads, width=config.attention_head_dim)
    if lacks and chosen:
        raise CheckpointError(f"FLUX2_MODEL_ATTENTION=fp8 needs {lacks}; otherwise set it to bf16")
    if lacks:
        logger.warning("attention stays in bf16, steps take longer", extra={"fp8_needs": lacks})
    return not lacks


def _reread_files(placement: Placement, checkpoint: Checkpoint, policy: PrecisionPolicy) -> set[Path]:
    """Return the files that must stay open, because swaps or prompts read them again."""
    files: set[Path] = set()
    # Float8 weights cannot be restored from a copy: the dense weights that they are made from are read again.
    if placement.base_weights == "file" or policy.rereads_weights:
        files |= set(checkpoint.transformer.weights)
    if placement.text_encoder == "streamed":
        files |= set(checkpoint.text_encoder.weights)
    return files


def _check_fit(components: Components) -> None:
    """Check that the widths of the three models match.

    Raises:
        CheckpointError: the models do not belong together.
    """
    # Now, because a mismatch would otherwise show only at the first image.
    latents, packed = components.transformer.config.in_channels, components.autoencoder.bn.num_features
    if latents != packed:
        raise CheckpointError(
            f"the transformer takes {latents} latent channels and the autoencoder packs {packed}; use the files of one "
            "model"
        )
    embedding = components.text_encoder.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    expected = components.transformer.config.joint_attention_dim
    given = len(family_of(components.text_encoder.config).hidden_states) * embedding
    if expected != given:
        raise CheckpointError(
            f"the transformer reads prompts {expected} wide and the text encoder gives {given}; check "
            "FLUX2_MODEL_TEXT_ENCODER"
        )
    if components.is_distilled == MODELS[components.model].uses_negative_prompt:
        has = "has a" if components.is_distilled else "has no"
        raise CheckpointError(
            f"the transformer {has} guidance embedder, so it is not {components.model!r}; check FLUX2_MODEL_ID"
        )


def _log_loaded(components: Components, checkpoint: Checkpoint) -> None:
    logger.info(
        "model loaded",
        extra={
            "revision": components.revision,
            "layout": checkpoint.transformer.layout,
            "precision": components.precision_names,
            "device": str(components.device),
            "load_s": {part: round(seconds, 2) for part, seconds in components.load_s.items()},
        },
    )
