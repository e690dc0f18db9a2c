"""Read the file of a reference image and prepare its pixels, as AI Toolkit's previews do.

The API checks a file with `check_file` when it is uploaded or named by a job, and the worker applies the same rules.
Training prepares control images in another way: it turns them by their EXIF orientation, composites transparent pixels
and scales to 512x512. A preview does none of that.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from shared.errors import ReferenceRefused
from shared.references import FORMATS, PreparedSize, check_pixels, prepared_size

# The marker of a scan of a JPEG, and the first byte of its length.
_SCAN = b"\xff\xda\x00"
# Encoders write up to 20. A scan that changes nothing takes 9 bytes, and 50 ms to decode in the largest image, so a
# file of a few megabytes could keep a process busy for hours.
_MAX_SCANS = 100


@dataclass(frozen=True)
class ReferenceFile:
    """What a complete image file holds.

    Attributes:
        content_type: of the file's format, whatever its sender stated.
        width, height: those of the file, in pixels.
        prepared: the size that it has when it is encoded.
    """

    content_type: str
    width: int
    height: int
    prepared: PreparedSize


def check_file(data: bytes) -> ReferenceFile:
    """Check a whole image file by decoding it: one of the largest takes 2 s and 1.1 GB, so check one at a time.

    Raises:
        ReferenceRefused: the data is no complete image of a supported format, or see `prepared_size`.
    """
    with _opened(data) as image:
        # Before any pixel is decoded.
        prepared = prepared_size(*image.size)
        image.load()
        # Pillow calls a JPEG that holds several pictures MPO; the first of them is the image.
        name = image.format if image.format in FORMATS else "JPEG"
        return ReferenceFile(f"image/{name.lower()}", image.width, image.height, prepared)


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
            _check_scans(image, data)
            yield image
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ReferenceRefused(
            f"the file is not a complete image of the formats {', '.join(FORMATS)}: {error}"
        ) from error


def _check_scans(image: Image.Image, data: bytes) -> None:
    is_jpeg = image.format not in FORMATS or image.format == "JPEG"
    if is_jpeg and data.count(_SCAN) > _MAX_SCANS:
        raise ReferenceRefused(
            f"the JPEG has more than {_MAX_SCANS} scans, which would take too long to decode; save it again as an "
            "ordinary JPEG or as PNG"
        )
