"""Turn the file of a reference image into the pixels that the autoencoder encodes, as AI Toolkit's previews do.

Training prepares control images in another way: it turns them by their EXIF orientation, composites transparent pixels
and scales to 512x512. A preview does none of that.
"""

from __future__ import annotations

import io
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.errors import ReferenceRefused
from shared.references import FORMATS, PreparedSize, prepared_size

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_size(data: bytes) -> PreparedSize:
    """Return the size that an image file has when it is encoded, from its header.

    Raises:
        ReferenceRefused: the data is no image of a supported format, or see `prepared_size`.
    """
    with _opened(data) as image:
        return prepared_size(*image.size)


def read_rgb(data: bytes) -> Image.Image:
    """Return the pixels of an image file, RGB, in the file's size.

    Raises:
        ReferenceRefused: the data is no complete image of a supported format.
    """
    # Transparent pixels keep their hidden colours, palettes and CMYK are converted, 16-bit grey is clipped at 255.
    with _opened(data) as image:
        return image.convert("RGB")


def prepare(image: Image.Image) -> Image.Image:
    """Scale and crop an RGB image to the size in which it is encoded.

    Raises:
        ReferenceRefused: see `prepared_size`.
    """
    size = prepared_size(*image.size)
    if size.scaled != image.size:
        image = image.resize(size.scaled, Image.Resampling.LANCZOS)
    return image.crop(size.box)


def to_pixels(image: Image.Image) -> Tensor:
    """Return an RGB image as (1, 3, height, width), -1 to 1, in float32."""
    # Two operations, because each one rounds: AI Toolkit scales to 0..1 first.
    return 2 * to_unit_tensor(image)[None] - 1


def to_unit_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, height, width), 0 to 1, in float32: what torchvision's `ToTensor` returns."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ReferenceRefused(
            f"the file is not a complete image of the formats {', '.join(FORMATS)}: {error}"
        ) from error
