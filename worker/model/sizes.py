"""Estimate the device memory of a model from its files' headers, and choose its placement."""

from __future__ import annotations

import torch

from shared.settings import ModelSettings
from worker.checkpoint.locate import Checkpoint
from worker.model.device_memory import free_memory_bytes
from worker.model.placement import (
    Placement,
    WeightSizes,
    adaptable_bytes,
    choose_placement,
    placement_error,
    weight_bytes,
)
from worker.model.precision import PRECISIONS, SMALLEST_EXACT, PrecisionPolicy, WeightStorage
from worker.model.text_encoder import text_encoder_sizes


def placement_for(checkpoint: Checkpoint, settings: ModelSettings, *, device: torch.device) -> Placement:
    """Choose the placement of a checkpoint's parts on a device.

    Raises:
        CheckpointError: the device is too small, or a file's header cannot be read.
    """
    free = free_memory_bytes(device, limit_gb=settings.memory_gb)
    policy, text = PRECISIONS[settings.precision], settings.text_encoder_precision
    sizes = weight_sizes(checkpoint, policy, policy.text_encoder_policy(text))
    placement = choose_placement(
        sizes, free=free, text_encoder=settings.text_encoder_place, base_weights=settings.clean_weights
    )
    if placement is not None:
        return placement
    assert free is not None
    # Suggest qfloat8 only to weights that are not float8 already.
    smaller = None
    if policy.storage is WeightStorage.DENSE:
        smaller = weight_sizes(checkpoint, SMALLEST_EXACT, SMALLEST_EXACT.text_encoder_policy(text))
    raise placement_error(
        sizes,
        free=free,
        model=settings.id,
        precision=policy.name,
        device=str(device),
        smaller=smaller,
        text_encoder=settings.text_encoder_place,
        base_weights=settings.clean_weights,
    )


def weight_sizes(checkpoint: Checkpoint, policy: PrecisionPolicy, text_policy: PrecisionPolicy) -> WeightSizes:
    """Return the bytes that each part takes in its precision."""
    shapes = checkpoint.transformer.open().shapes
    adaptable = adaptable_bytes(shapes, dtype=policy.dtype)
    qfloat8 = policy.storage is WeightStorage.QFLOAT8
    transformer = weight_bytes(shapes.values(), dtype=policy.dtype, float8=qfloat8)
    if policy.storage is WeightStorage.FP8:
        transformer -= adaptable // 2  # one byte a value instead of two
    text = text_encoder_sizes(
        checkpoint.text_encoder,
        dtype=text_policy.dtype,
        float8=text_policy.storage is WeightStorage.QFLOAT8,
    )
    return WeightSizes(
        transformer=transformer,
        autoencoder=weight_bytes(checkpoint.autoencoder.open().shapes.values(), dtype=policy.dtype, float8=False),
        text_encoder=text.whole,
        text_embedding=text.embedding,
        text_layer=text.layer,
        text_layers=text.layers,
        # Weights that never change need no backups.
        adaptable=adaptable if policy.can_merge else 0,
    )
