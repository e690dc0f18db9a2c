"""Encode reference images to the tokens that a transformer reads behind those of the image it denoises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shared.errors import ReferenceRefused
from shared.job import ReferenceRef, ReferenceReport
from shared.reference_image import read_rgb, read_size
from shared.references import MAX_REFERENCES, PREPARATION, LoadReference, PreparedSize
from worker.model.components import Components
from worker.rendering.latents import image_ids, pack
from worker.rendering.reference_images import ReferenceImages, to_pixels

# The time coordinate of the first reference, and the distance to the next one's; the denoised image has time 0.
_TIME_STEP: Final = 10
# AI Toolkit casts the tokens to it, in float32 runs too.
_DTYPE: Final = torch.bfloat16

# In host memory: 250 references of one megapixel. A job may render hundreds of images with several prompts each.
_CACHED_BYTES: Final = 256_000_000
# On the device: what this item and the next one need.
_UPLOADED: Final = 2 * MAX_REFERENCES


def _ignore() -> None:
    """Do nothing between two images."""


class LoadedReference(NamedTuple):
    """A reference image in host memory: as the one of its three forms from which an item continues.

    Attributes:
        size: the size that the image has when it is encoded.
        tokens: (1, tokens, channels), bfloat16, of an image that was encoded before.
        image: the prepared image, if it was not.
        file: for an engine that encodes the file itself.
    """

    ref: ReferenceRef
    size: PreparedSize
    tokens: Tensor | None = None
    image: Image.Image | None = None
    file: bytes | None = None

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
        tokens: (1, tokens, channels), bfloat16, of all images; None for an engine that encodes them itself.
        ids: the tokens' coordinates (time, row, column, text), (tokens, 4), int64.
        images: RGB, in the files' sizes, for an engine that encodes them itself; otherwise empty.
    """

    tokens: Tensor | None
    ids: Tensor
    images: tuple[Image.Image, ...] = ()


class _Key(NamedTuple):
    """All that determines the tokens of a reference."""

    sha256: str
    preparation: int
    revision: str


class _Encoding(NamedTuple):
    size: PreparedSize
    tokens: Tensor


class ReferenceEncoder:
    """Loads reference images, and encodes them with the autoencoder of one base model.

    Threads may load and upload at the same time; one of them encodes.

    Args:
        load: see `LoadReference`.
    """

    def __init__(self, components: Components, *, load: LoadReference) -> None:
        self._components = components
        self._images = ReferenceImages(load)
        # Guards the three caches.
        self._lock = threading.Lock()
        self._encodings: LRUCache[_Key, _Encoding] = LRUCache(_CACHED_BYTES, getsizeof=lambda made: made.tokens.nbytes)
        self._uploaded_tokens: LRUCache[_Key, Tensor] = LRUCache(_UPLOADED)
        self._uploaded_pixels: LRUCache[_Key, Tensor] = LRUCache(_UPLOADED)

    def load(
        self, refs: Sequence[ReferenceRef], *, files_only: bool = False, between: Callable[[], None] = _ignore
    ) -> tuple[LoadedReference, ...]:
        """Load an item's references, in the order of their slots, and prepare those that are not encoded yet.

        Args:
            files_only: load the files, for an engine that encodes them itself.
            between: called between two images; an error that it raises ends the loading.

        Raises:
            ReferenceRefused: an image is missing, is no complete image, or has a size that AI Toolkit refuses.
            StorageUnavailable: the store did not answer.
        """
        load = self._load_file if files_only else self._load_image
        loaded: list[LoadedReference] = []
        for ref in sorted(refs, key=lambda ref: ref.slot):
            if loaded:
                between()
            with _naming(ref):
                loaded.append(load(ref))
        return tuple(loaded)

    def upload(self, loaded: Sequence[LoadedReference]) -> None:
        """Copy to the device what `encode` will need there, on the current stream.

        The caller synchronises the stream. A copy that `encode` would begin waits for base weights that are being
        copied to the device for the same item.
        """
        for reference in loaded:
            key = self._key(reference)
            with self._lock:
                is_there = key in self._uploaded_tokens or key in self._uploaded_pixels
            if is_there or reference.file is not None:
                continue
            if reference.tokens is not None:
                tokens = reference.tokens.to(self._components.device)
                with self._lock:
                    # Another thread may have called `forget` since they were loaded.
                    found: _Encoding | None = self._encodings.get(key)
                    if found is not None and found.tokens is reference.tokens:
                        self._uploaded_tokens[key] = tokens
            else:
                pixels = self._pixels(reference)
                with self._lock:
                    self._uploaded_pixels[key] = pixels

    @torch.no_grad()
    def encode(self, loaded: Sequence[LoadedReference], *, between: Callable[[], None] = _ignore) -> References:
        """Return the references of an item on the device.

        Args:
            between: see `load`.

        Raises:
            ReferenceRefused: a file is no complete image.
        """
        device = self._components.device
        ids = torch.cat([
            image_ids(reference.size.rows, reference.size.columns, time=_TIME_STEP * position, device=device)
            for position, reference in enumerate(loaded, start=1)
        ])  # fmt: skip
        files = [(reference.ref, reference.file) for reference in loaded if reference.file is not None]
        if files:
            return References(None, ids, tuple(_decode(ref, file) for ref, file in files))
        tokens: list[Tensor] = []
        for reference in loaded:
            if tokens:
                between()
            tokens.append(self._encode(reference))
        return References(torch.cat(tokens, dim=1), ids)

    def forget(self) -> None:
        """Drop the encoded images, because they may have been encoded while memory was short."""
        with self._lock:
            self._encodings.clear()
            self._uploaded_tokens.clear()
            self._uploaded_pixels.clear()

    def _load_image(self, ref: ReferenceRef) -> LoadedReference:
        with self._lock:
            encoding: _Encoding | None = self._encodings.get(self._key_of(ref))
        if encoding is not None:
            return LoadedReference(ref, encoding.size, tokens=encoding.tokens)
        size, image = self._images.prepared(ref.sha256)
        return LoadedReference(ref, size, image=image)

    def _load_file(self, ref: ReferenceRef) -> LoadedReference:
        file = self._images.file(ref.sha256)
        return LoadedReference(ref, read_size(file), file=file)

    def _encode(self, reference: LoadedReference) -> Tensor:
        """Return (1, tokens, channels)."""
        key = self._key(reference)
        with self._lock:
            tokens: Tensor | None = self._uploaded_tokens.get(key)
            pixels: Tensor | None = self._uploaded_pixels.pop(key, None)
        if tokens is None and reference.tokens is not None:
            tokens = reference.tokens.to(self._components.device)
        if tokens is None:
            pixels = self._pixels(reference) if pixels is None else pixels
            tokens = pack(encode(self._components.autoencoder, pixels)).to(_DTYPE)
            # Waits for the device too, which may still read pixels that another stream's memory held.
            encoding = _Encoding(reference.size, tokens.cpu())
            with self._lock:
                self._encodings[key] = encoding
        with self._lock:
            self._uploaded_tokens[key] = tokens
        return tokens

    def _pixels(self, reference: LoadedReference) -> Tensor:
        assert reference.image is not None
        return to_pixels(reference.image).to(self._components.device, self._components.autoencoder.dtype)

    def _key(self, reference: LoadedReference) -> _Key:
        return self._key_of(reference.ref)

    def _key_of(self, ref: ReferenceRef) -> _Key:
        return _Key(ref.sha256, PREPARATION, self._components.revision)


@contextmanager
def _naming(ref: ReferenceRef) -> Iterator[None]:
    """Name the slot in errors of its image."""
    try:
        yield
    except ReferenceRefused as error:
        raise ReferenceRefused(f"reference image {ref.slot}: {error}", field=f"ctrl_img_{ref.slot}") from error


def _decode(ref: ReferenceRef, file: bytes) -> Image.Image:
    with _naming(ref):
        return read_rgb(file)


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
