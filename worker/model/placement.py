"""Decide which parts of a model stay on the device, before anything is loaded.

The transformer runs in every step, so it is always on the device. The text encoder runs once for each prompt, so its
layers can be streamed from host memory (`worker.model.layer_streaming`). The base weights that an adapter swap restores
can stay in host memory or in the checkpoint's files too (`worker.lora.base_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from shared.errors import CheckpointError
from worker.model.layer_streaming import BUFFERS

TextEncoderPlace = Literal["resident", "streamed"]
BaseWeightsPlace = Literal["device", "host", "file"]

# One step and one decode of 1024x1024 at full size take 1.6 and 2.3 GB, and encoding a reference of one megapixel 1.6.
_WORK_BYTES = 4_000_000_000
# Additional memory of 2048x2048, with three references of one megapixel too: 29,184 tokens, of which each takes 0.19 MB
# in a compiled step and 0.32 MB in an uncompiled one. Backups of base weights leave it free: an image that must be
# decoded in tiles has different pixels.
_LARGE_WORK_BYTES = 8_000_000_000
_GB = 1_000_000_000
# A step keeps at least this many values for each token and channel at once: 14.5 in float8, 15.2 in bfloat16, both
# compiled, on an H200.
_VALUES_A_CHANNEL = 14

# A byte of a streamed text encoder costs half as much as a byte of base weights. A new prompt's layers are copied while
# the item before renders; base weights are copied during the last step before a swap and the first step after it.
_TEXT_ENCODER_COST = 0.5


@dataclass(frozen=True)
class WeightSizes:
    """Bytes that the parts' weights take on the device.

    Attributes:
        text_embedding: the text encoder's token table, which stays on the host when layers are streamed.
        text_layer: one layer of the text encoder; all are of equal size.
        text_layers: number of those layers.
        adaptable: the transformer's weights that adapters may change; 0 if adapters are never merged.
    """

    transformer: int
    autoencoder: int
    text_encoder: int
    text_embedding: int
    text_layer: int
    text_layers: int
    adaptable: int

    @property
    def streamed_text_encoder(self) -> int:
        """Bytes of the text encoder that stay on the device while its layers are streamed."""
        streamed = self.text_layers - min(BUFFERS, self.text_layers)
        return self.text_encoder - self.text_embedding - streamed * self.text_layer


@dataclass(frozen=True)
class Placement:
    """Which parts stay on the device.

    Attributes:
        base_weights: where an adapter swap restores base weights from.
        gigabytes: device memory that this placement takes, with room for one image of 1024x1024.
        device_backup_bytes: additional device memory for some of the backups, if not all of them are on the device.
        work_bytes: device memory that is left for steps and decodes if the backups take none; None on a CPU.
    """

    text_encoder: TextEncoderPlace
    base_weights: BaseWeightsPlace
    gigabytes: float
    device_backup_bytes: int = 0
    work_bytes: int | None = None

    def __str__(self) -> str:
        text = f"text encoder {self.text_encoder}, base weights from {self.base_weights}, {self.gigabytes:.1f} GB"
        if not self.device_backup_bytes:
            return text
        return f"{text}, up to {self.device_backup_bytes / _GB:.1f} GB for backups of base weights"


def choose_placement(
    sizes: WeightSizes,
    *,
    free: int | None,
    text_encoder: TextEncoderPlace | None = None,
    base_weights: BaseWeightsPlace | None = None,
) -> Placement | None:
    """Return the fitting placement that copies the fewest bytes from the host; None if no placement fits.

    Args:
        free: free device memory in bytes; None on a CPU, where everything is in host memory.
        text_encoder, base_weights: choices made by the settings.
    """
    if free is None:
        return _placement(sizes, text_encoder or "resident", base_weights or "file")
    # `host` is never chosen: copies cost every worker memory, and the file's pages are shared (`BaseWeights`).
    texts: tuple[TextEncoderPlace, ...] = (text_encoder,) if text_encoder else ("resident", "streamed")
    bases: tuple[BaseWeightsPlace, ...] = (base_weights,) if base_weights else ("device", "file")
    candidates = (_placement(sizes, text, base) for text in texts for base in bases)
    fitting = [_with_backups(candidate, sizes, free, is_set=base_weights is not None) for candidate in candidates]
    return min((choice for choice in fitting if choice), key=lambda choice: _copy_cost(choice, sizes), default=None)


def _with_backups(candidate: Placement, sizes: WeightSizes, free: int, *, is_set: bool) -> Placement | None:
    """Give backups the memory that no large image needs; return None if the placement does not fit.

    Args:
        is_set: whether the settings name the place of the base weights; all of them then go there.
    """
    spare = int(free - candidate.gigabytes * _GB)
    if spare < 0:
        return None
    candidate = replace(candidate, work_bytes=spare + _WORK_BYTES)
    if is_set or not sizes.adaptable:
        return candidate
    room = spare - _LARGE_WORK_BYTES
    # All backups on the device must leave room for a large image, or none are placed there.
    if candidate.base_weights == "device":
        return candidate if room >= 0 else None
    return replace(candidate, device_backup_bytes=max(0, min(room, sizes.adaptable)))


def _copy_cost(choice: Placement, sizes: WeightSizes) -> float:
    """Return the bytes that an adapter swap copies to the device, plus the weighted bytes of a new prompt."""
    base = 0 if choice.base_weights == "device" else sizes.adaptable - choice.device_backup_bytes
    text = 0 if choice.text_encoder == "resident" else sizes.text_layers * sizes.text_layer
    return base + _TEXT_ENCODER_COST * text


def placement_error(
    sizes: WeightSizes,
    *,
    free: int,
    model: str,
    precision: str,
    device: str,
    smaller: WeightSizes | None,
    text_encoder: TextEncoderPlace | None = None,
    base_weights: BaseWeightsPlace | None = None,
) -> CheckpointError:
    """Return an error that says how much memory is missing, and which setting would help.

    Args:
        smaller: the model's sizes under `qfloat8`; None if the weights are float8 already.
        text_encoder, base_weights: choices made by the settings.
    """
    least = _placement(sizes, text_encoder or "streamed", base_weights or "file").gigabytes
    problem = f"{model} in {precision} needs {least:.1f} GB of device memory; {free / _GB:.1f} GB are free on {device}"
    hint = "choose a smaller model"
    if unset := choose_placement(sizes, free=free):
        hint = (
            f"{unset.gigabytes:.1f} GB are enough without FLUX2_MODEL_TEXT_ENCODER_PLACE and FLUX2_MODEL_CLEAN_WEIGHTS"
        )
    elif fitting := smaller and choose_placement(smaller, free=free):
        hint = f"FLUX2_MODEL_PRECISION=qfloat8 needs {fitting.gigabytes:.1f} GB"
    return CheckpointError(f"{problem}; {hint}")


def lacking_step_bytes(placement: Placement, *, tokens: int, channels: int, dtype: torch.dtype) -> int:
    """Return the device memory that a step lacks for certain; 0 if it may fit.

    Args:
        tokens: number of tokens of the image, its references and its prompt.
        channels: width of the transformer.
    """
    if placement.work_bytes is None:
        return 0
    return max(0, tokens * channels * dtype.itemsize * _VALUES_A_CHANNEL - placement.work_bytes)


def weight_bytes(shapes: Iterable[tuple[int, ...]], *, dtype: torch.dtype, float8: bool) -> int:
    """Return the bytes that tensors of these shapes take; with `float8`, matrices take one byte a value."""
    return sum(math.prod(shape) * (1 if float8 and len(shape) == 2 else dtype.itemsize) for shape in shapes)


def adaptable_bytes(shapes: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype) -> int:
    """Return the bytes of the matrices in a transformer's blocks, by tensor names of either layout."""
    # Both layouts have "block" in the names of the blocks' tensors: double_blocks, single_transformer_blocks.
    return weight_bytes(
        (shape for name, shape in shapes.items() if "block" in name and len(shape) == 2), dtype=dtype, float8=False
    )


def _placement(sizes: WeightSizes, text_encoder: TextEncoderPlace, base_weights: BaseWeightsPlace) -> Placement:
    text = sizes.text_encoder if text_encoder == "resident" else sizes.streamed_text_encoder
    backups = sizes.adaptable if base_weights == "device" else 0
    taken = sizes.transformer + sizes.autoencoder + text + backups + _WORK_BYTES
    return Placement(text_encoder, base_weights, taken / _GB)
