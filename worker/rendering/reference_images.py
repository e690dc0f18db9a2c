"""Load the files of reference images, and prepare the pixels that an autoencoder encodes."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from shared.reference_image import prepare, read_rgb, read_size
from shared.references import MAX_REFERENCES, LoadReference, PreparedSize

# Prepared images, of 4 MB each, wait until they are encoded: those of this item and of the next one.
_KEPT_IMAGES: Final = 2 * MAX_REFERENCES
# Only an engine that encodes the files itself needs them again.
_KEPT_FILE_BYTES: Final = 128_000_000


class PreparedImage(NamedTuple):
    """An image as it is encoded: RGB, scaled and cropped."""

    size: PreparedSize
    image: Image.Image


class ReferenceImages:
    """Loads reference images and keeps the last ones in host memory; threads may share it.

    Args:
        load: see `LoadReference`.
    """

    def __init__(self, load: LoadReference) -> None:
        self._load = load
        # Guards the two caches.
        self._lock = threading.Lock()
        self._files: LRUCache[str, bytes] = LRUCache(_KEPT_FILE_BYTES, getsizeof=len)
        self._images: LRUCache[str, PreparedImage] = LRUCache(_KEPT_IMAGES)
        # One at a time, because decoding takes up to 1.1 GB.
        self._decoding = threading.Lock()

    def prepared(self, sha256: str) -> PreparedImage:
        """Return an image as it is encoded.

        Raises:
            ReferenceRefused: nobody stored it, or it is no complete image of a size that AI Toolkit accepts.
            StorageUnavailable: the store did not answer.
        """
        found = self._prepared(sha256)
        if found is not None:
            return found
        data = self._load(sha256)
        with self._decoding:
            # Another thread may have prepared it in the meantime.
            made = self._prepared(sha256) or PreparedImage(read_size(data), prepare(read_rgb(data)))
            with self._lock:
                self._images[sha256] = made
        return made

    def file(self, sha256: str) -> bytes:
        """Return an image's file.

        Raises:
            ReferenceRefused: nobody stored it.
            StorageUnavailable: the store did not answer.
        """
        with self._lock:
            found: bytes | None = self._files.get(sha256)
        data = self._load(sha256) if found is None else found
        with self._lock:
            if len(data) <= self._files.maxsize:
                self._files[sha256] = data
        return data

    def _prepared(self, sha256: str) -> PreparedImage | None:
        with self._lock:
            found: PreparedImage | None = self._images.get(sha256)
        return found


def to_pixels(image: Image.Image) -> Tensor:
    """Return an RGB image as (1, 3, height, width), -1 to 1, in float32."""
    # Two operations, because each one rounds: AI Toolkit scales to 0..1 first.
    return 2 * to_unit_tensor(image)[None] - 1


def to_unit_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, height, width), 0 to 1, in float32: what torchvision's `ToTensor` returns."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
