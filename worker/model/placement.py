"""Decide what of a model lies on the device, before anything is loaded.

A transformer that takes steps must be there. The text encoder runs once a prompt, so its layers can wait in host memory
and be streamed (`worker.model.layer_streaming`); the clean weights that adapters are taken off with can wait there too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from shared.errors import CheckpointError
from worker.model.layer_streaming import BUFFERS

TextEncoderPlace = Literal["resident", "streamed"]
CleanPlace = Literal["device", "host", "file"]

# A step and a decode of 1024x1024 at full size take 1.6 and 2.3 GB; larger images are decoded in tiles where they must.
_WORK = 4_000_000_000
# What one of 2048x2048 takes more. Copies of clean weights never take that: decoding in tiles gives other pixels.
_LARGE_WORK = 8_000_000_000
_GB = 1_000_000_000
_SETTLE_S = 10.0
_LOOK_S = 0.2

# A new prompt's layers come from the host while the item before renders, the weights of another adapter under the last
# step before and the first step after; so a byte of the first counts as half of one of the second.
_PROMPT_SHARE = 0.5


@dataclass(frozen=True)
class Needs:
    """Bytes of weights, as they lie on the device.

    Attributes:
        text_embedding: of the text encoder's tokens, which lie on the host where its layers are streamed.
        text_layer: of one of its layers, all of which are alike.
        adapted: of the weights that adapters may change; 0 where adapters run beside them.
    """

    transformer: int
    autoencoder: int
    text_encoder: int
    text_embedding: int
    text_layer: int
    text_layers: int
    adapted: int

    @property
    def streamed_text_encoder(self) -> int:
        """What stays on the device while its layers are streamed."""
        streamed = self.text_layers - min(BUFFERS, self.text_layers)
        return self.text_encoder - self.text_embedding - streamed * self.text_layer


@dataclass(frozen=True)
class Placement:
    """Where the parts lie.

    Attributes:
        gigabytes: what that takes at least, with room for an image.
        clean_on_device: bytes of clean weights that may lie on the device all the same, since it has room.
    """

    text_encoder: TextEncoderPlace
    clean: CleanPlace
    gigabytes: float
    clean_on_device: int = 0

    def __str__(self) -> str:
        said = f"text encoder {self.text_encoder}, clean weights: {self.clean}, {self.gigabytes:.1f} GB"
        if not self.clean_on_device:
            return said
        return f"{said} and up to {self.clean_on_device / _GB:.1f} GB of clean weights"


def place(
    needs: Needs, *, free: int | None, text_encoder: TextEncoderPlace | None = None, clean: CleanPlace | None = None
) -> Placement | None:
    """Return the fastest placement that fits, or None.

    Args:
        free: bytes; None for a device that is the host, where everything lies.
        text_encoder, clean: what was decided already.
    """
    if free is None:
        return _placement(needs, text_encoder or "resident", clean or "file")
    texts: tuple[TextEncoderPlace, ...] = (text_encoder,) if text_encoder else ("resident", "streamed")
    cleans: tuple[CleanPlace, ...] = (clean,) if clean else ("device", "file")
    choices = (_placement(needs, text, where) for text in texts for where in cleans)
    fitting = [_with_spare(choice, needs, free, by_hand=clean is not None) for choice in choices]
    return min((choice for choice in fitting if choice), key=lambda choice: _from_host(choice, needs), default=None)


def _with_spare(choice: Placement, needs: Needs, free: int, *, by_hand: bool) -> Placement | None:
    """Let clean weights take the room that is left, but for what a large image needs; None if it does not fit.

    Args:
        by_hand: whether it was set where the clean weights lie, and so all of them.
    """
    spare = int(free - choice.gigabytes * _GB)
    if spare < 0:
        return None
    if by_hand or not needs.adapted:
        return choice
    room = spare - _LARGE_WORK
    if choice.clean == "device":
        return choice if room >= 0 else None
    return replace(choice, clean_on_device=max(0, min(room, needs.adapted)))


def _from_host(choice: Placement, needs: Needs) -> float:
    """Return the bytes that a change of adapters waits for, and the part of a prompt's that counts as much."""
    clean = 0 if choice.clean == "device" else needs.adapted - choice.clean_on_device
    text = 0 if choice.text_encoder == "resident" else needs.text_layers * needs.text_layer
    return clean + _PROMPT_SHARE * text


def explain(
    needs: Needs,
    *,
    free: int,
    model: str,
    precision: str,
    device: str,
    float8: Needs | None,
    text_encoder: TextEncoderPlace | None = None,
    clean: CleanPlace | None = None,
) -> CheckpointError:
    """Say how much is missing, and what would do.

    Args:
        float8: what the model needs under `qfloat8`, unless that is what does not fit.
        text_encoder, clean: what was decided already.
    """
    least = _placement(needs, text_encoder or "streamed", clean or "file").gigabytes
    said = f"{model} in {precision} needs {least:.1f} GB of device memory, and {free / _GB:.1f} GB are free on {device}"
    hint = "take a smaller model"
    if anyhow := place(needs, free=free):
        hint = f"{anyhow.gigabytes:.1f} GB would do, were it not set by hand where the parts lie"
    elif smaller := float8 and place(float8, free=free):
        hint = f"FLUX2_MODEL_PRECISION=qfloat8 needs {smaller.gigabytes:.1f} GB"
    return CheckpointError(f"{said}; {hint}")


def weight_bytes(shapes: Iterable[tuple[int, ...]], *, dtype: torch.dtype, float8: bool) -> int:
    """Return what tensors take; under float8 matrices are one byte a value."""
    return sum(math.prod(shape) * (1 if float8 and len(shape) == 2 else dtype.itemsize) for shape in shapes)


def adapted_bytes(shapes: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype) -> int:
    """Return what the matrices inside a transformer's blocks take, by the names of either layout."""
    return weight_bytes(
        (shape for name, shape in shapes.items() if "block" in name and len(shape) == 2), dtype=dtype, float8=False
    )


def free_bytes(device: torch.device, *, limit_gb: float | None) -> int | None:
    """Return the memory that a model may take, None on the host; a limit is held to by every later allocation."""
    if device.type != "cuda":
        return None
    free, total = _settled(device)
    if limit_gb is None:
        return free
    limit = int(limit_gb * _GB)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    return min(free, limit)


def _settled(device: torch.device) -> tuple[int, int]:
    """Return free and all memory once the first stays the same: who has just ended may be giving memory back."""
    free, total = torch.cuda.mem_get_info(device)
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until:
        time.sleep(_LOOK_S)
        before, (free, total) = free, torch.cuda.mem_get_info(device)
        if free == before:
            break
    return free, total


def _placement(needs: Needs, text_encoder: TextEncoderPlace, clean: CleanPlace) -> Placement:
    text = needs.text_encoder if text_encoder == "resident" else needs.streamed_text_encoder
    copies = needs.adapted if clean == "device" else 0
    taken = needs.transformer + needs.autoencoder + text + copies + _WORK
    return Placement(text_encoder, clean, taken / _GB)
