"""Read the file of a reference image and prepare its pixels, as AI Toolkit's previews do.

The API checks a file with `read_size` when it accepts a job, and the worker applies the same rules. Training prepares
control images in another way: it turns them by their EXIF orientation, composites transparent pixels and scales to
512x512. A preview does none of that.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from shared.errors import ReferenceRefused
from shared.references import FORMATS, PreparedSize, check_pixels, prepared_size


def read_size(data: bytes) -> PreparedSize:
    """Return the size that an image file has when it is encoded, from its header.

    Raises:
        ReferenceRefused: the data is no image of a supported format, or see `prepared_size`.
    """
    # The header alone: the pixels of a small file may take gigabytes.
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


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(*image.size)
            yield image
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ReferenceRefused(
            f"the file is not a complete image of the formats {', '.join(FORMATS)}: {error}"
        ) from error
