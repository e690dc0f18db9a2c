"""Encode reference images to the tokens that a transformer reads behind those of the image it denoises."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor
from torch.nn import functional

from shared.errors import ReferenceRefused
from shared.job import ReferenceRef, ReferenceReport
from shared.reference_image import prepare, read_rgb, read_size
from shared.references import PREPARATION, LoadReference, PreparedSize
from worker.model.components import Components
from worker.rendering.latents import image_ids, pack
from worker.rendering.reference_images import to_pixels

# The time coordinate of the first reference, and the distance to the next one's; the denoised image has time 0.
_TIME_STEP = 10
# AI Toolkit casts the tokens to it, in float32 runs too.
_DTYPE = torch.bfloat16

# Both caches are in host memory. A reference of one megapixel has 1 MB of tokens.
_CACHED_BYTES = 256_000_000
_CACHED_ENCODINGS = 64


class ReferenceFile(NamedTuple):
    """The file of a reference image.

    Attributes:
        size: the size that the image has when it is encoded.
    """

    ref: ReferenceRef
    data: bytes
    size: PreparedSize

    @property
    def report(self) -> ReferenceReport:
        """What an item's result says about the image."""
        return ReferenceReport(
            slot=self.ref.slot, sha256=self.ref.sha256, width=self.size.width, height=self.size.height
        )


@dataclass(frozen=True)
class References:
    """The reference images of one item, in the order of their slots.

    Attributes:
        files: the images' files, for an engine that encodes them itself.
        tokens: (1, tokens, channels), bfloat16, of all images; None for an engine that encodes them itself.
        ids: the tokens' coordinates (time, row, column, text), (tokens, 4), int64.
    """

    files: tuple[bytes, ...]
    tokens: Tensor | None
    ids: Tensor


class _Key(NamedTuple):
    """All that determines the tokens of a reference."""

    sha256: str
    preparation: int
    revision: str


class ReferenceEncoder:
    """Loads reference images, and encodes them with the autoencoder of one base model.

    Threads may fetch at the same time; one of them encodes.

    Args:
        load: see `LoadReference`.
    """

    def __init__(self, components: Components, *, load: LoadReference) -> None:
        self._components = components
        self._load = load
        # Guards the two caches.
        self._lock = threading.Lock()
        self._files: LRUCache[str, bytes] = LRUCache(_CACHED_BYTES, getsizeof=len)
        self._encodings: LRUCache[_Key, Tensor] = LRUCache(_CACHED_ENCODINGS)

    def fetch(self, refs: Sequence[ReferenceRef]) -> tuple[ReferenceFile, ...]:
        """Load the files of an item's references, and check all of them.

        Raises:
            ReferenceRefused: a file is missing, is no image, or has a size that AI Toolkit refuses.
            StorageUnavailable: the store did not answer.
        """
        return tuple(self._fetch(ref) for ref in sorted(refs, key=lambda ref: ref.slot))

    @torch.no_grad()
    def encode(self, files: Sequence[ReferenceFile], *, files_only: bool = False) -> References:
        """Return the references of an item on the device.

        Args:
            files_only: leave the tokens out, for an engine that encodes the files itself.
        """
        device = self._components.device
        ids = [
            image_ids(file.size.rows, file.size.columns, time=_TIME_STEP * position, device=device)
            for position, file in enumerate(files, start=1)
        ]
        tokens = None if files_only else torch.cat([self._encode(file) for file in files], dim=1)
        return References(tuple(file.data for file in files), tokens, torch.cat(ids))

    def forget(self) -> None:
        """Drop the encoded images, because they may have been encoded while memory was short."""
        with self._lock:
            self._encodings.clear()

    def _fetch(self, ref: ReferenceRef) -> ReferenceFile:
        with self._lock:
            data: bytes | None = self._files.get(ref.sha256)
        try:
            if data is None:
                data = self._load(ref.sha256)
            size = read_size(data)
        except ReferenceRefused as error:
            raise ReferenceRefused(f"reference image {ref.slot}: {error}", field=f"ctrl_img_{ref.slot}") from error
        with self._lock:
            if len(data) <= self._files.maxsize:
                self._files[ref.sha256] = data
        return ReferenceFile(ref, data, size)

    def _encode(self, file: ReferenceFile) -> Tensor:
        """Return (1, tokens, channels)."""
        components = self._components
        key = _Key(file.ref.sha256, PREPARATION, components.revision)
        with self._lock:
            found: Tensor | None = self._encodings.get(key)
        if found is not None:
            return found.to(components.device)
        pixels = to_pixels(prepare(read_rgb(file.data)))
        tokens = pack(encode(components.autoencoder, pixels.to(components.device))).to(_DTYPE)
        with self._lock:
            self._encodings[key] = tokens.cpu()
        return tokens


def encode(autoencoder: Any, pixels: Tensor) -> Tensor:
    """Return latents (batch, channels, height / 16, width / 16), normalised as the transformer sees them.

    The autoencoder is diffusers' AutoencoderKLFlux2; its own `encode` encodes in tiles while tiled decoding is on.

    Args:
        pixels: (batch, 3, height, width), -1 to 1.
    """
    moments = autoencoder.quant_conv(autoencoder.encoder(pixels.to(autoencoder.dtype)))
    mean = moments.chunk(2, dim=1)[0]  # AI Toolkit draws no sample
    latents: Tensor = autoencoder.bn(functional.pixel_unshuffle(mean, 2))
    return latents
