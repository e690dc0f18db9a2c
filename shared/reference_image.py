"""Read the file of a reference image and prepare its pixels, as AI Toolkit's previews do.

The API checks a file with `check_image` when it accepts a job, and the worker applies the same rules. Training prepares
control images in another way: it turns them by their EXIF orientation, composites transparent pixels and scales to
512x512. A preview does none of that.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from PIL import ExifTags, Image, UnidentifiedImageError

from shared.errors import ReferenceRefused
from shared.image_parts import check_parts
from shared.references import FORMATS, PreparedSize, check_pixels, prepared_size

# Pillow's name of a JPEG with a second image, such as those of phones.
_CONTENT_TYPES: Final = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}
# How files of other kinds begin. They are refused by name, because "no image" would be no help.
_OTHER_KINDS: Final = (
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an SVG or another XML file"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
# The marker of a scan of a JPEG, and the first byte of its length. Encoders write up to 20 scans. One that changes
# nothing takes 9 bytes, and 50 ms to decode in the largest image: a small file could keep a process busy for hours.
_SCAN: Final = b"\xff\xda\x00"
_MAX_SCANS: Final = 100
# A progressive JPEG is decoded as a whole: 6 bytes a pixel.
_MAX_PROGRESSIVE_PIXELS: Final = 2**24


@dataclass(frozen=True)
class CheckedImage:
    """What a file says that can be a reference image.

    Attributes:
        width: in pixels, as in the file.
        notes: what may surprise, as ends of a sentence whose subject is the image.
    """

    sha256: str
    size_bytes: int
    width: int
    height: int
    prepared: PreparedSize
    content_type: str
    notes: tuple[str, ...] = ()


def check_image(data: bytes) -> CheckedImage:
    """Check a file as completely as that is cheap, in little more memory than the file's; the worker decodes it.

    Raises:
        ReferenceRefused: no item could use the file; the message says why.
    """
    with _opened(data) as image:
        width, height = image.size
        prepared = prepared_size(width, height)
        content_type, notes = _CONTENT_TYPES[image.format or ""], tuple(_notes(image))
        _check_complete(image)
    return CheckedImage(sha256(data).hexdigest(), len(data), width, height, prepared, content_type, notes)


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

    The largest RGB image takes 268 MB, one of other colours 537 MB, and a WebP 1.1 GB.

    Raises:
        ReferenceRefused: the data is no complete image of a supported format.
    """
    with _opened(data) as image:
        image.load()
        # Pillow would convert RGB to RGB by a copy.
        if image.mode == "RGB":
            return image
        # It warns of a palette's transparency, on which the colours do not depend.
        image.info.pop("transparency", None)
        # Transparent pixels keep their hidden colours, palettes and CMYK are converted, 16-bit grey is clipped at 255.
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
    check_parts(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(*image.size)
            _check_scans(image, data)
            yield image
    except UnidentifiedImageError as error:
        # Without Pillow's words, which name an object in memory.
        raise ReferenceRefused(
            f"the file {_describe_kind(data)}; save it as one of the formats {', '.join(FORMATS)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ReferenceRefused("the image has too many pixels to be decoded; scale it down") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ReferenceRefused(
            f"the file is not a complete image of the formats {', '.join(FORMATS)}: {error}"
        ) from error


def _check_scans(image: Image.Image, data: bytes) -> None:
    if image.format in ("JPEG", "MPO") and data.count(_SCAN) > _MAX_SCANS:
        raise ReferenceRefused(
            f"the JPEG has more than {_MAX_SCANS} scans, which would take too long to decode; save it again as an "
            "ordinary JPEG or as PNG"
        )


def _describe_kind(data: bytes) -> str:
    start = data[:64].lstrip().lower()
    if data[4:8] == b"ftyp":
        return "is a HEIC or AVIF image, or a video"
    found = next((name for magic, name in _OTHER_KINDS if start.startswith(magic.lower())), None)
    return f"is {found}" if found else "is no image, or its beginning is damaged"


def _notes(image: Image.Image) -> Iterator[str]:
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        yield "is animated: its first frame is used"
    # Without this condition, Pillow would decode a PNG to look for EXIF behind its pixels.
    if "exif" in image.info:
        # A hint must not fail a job: Pillow's parser raises many kinds of errors.
        with suppress(Exception):
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                yield (
                    "states an EXIF orientation, which AI Toolkit's previews do not apply: it is used as its pixels "
                    "are stored; turn it before you submit it"
                )


def _check_complete(image: Image.Image) -> None:
    """Refuse a truncated file; afterwards the image cannot be read."""
    match image.format:
        case "PNG":
            # Checksums alone: the pixels may take 1,000 times the file.
            image.verify()
        case "JPEG" | "MPO":
            width, height = image.size
            if "progressive" not in image.info or width * height <= _MAX_PROGRESSIVE_PIXELS:
                # In an eighth of its size, which takes 1/64 of the memory.
                image.draft("", (max(1, width // 8), max(1, height // 8)))
                image.load()
        case "BMP":
            image.load()
    # Opening a WebP needs all of it.
