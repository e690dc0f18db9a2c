"""An image of this host as the body of an upload: checked here first, so that a message names the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.errors import ReferenceRefused, UploadRefused
from shared.reference_image import CheckedImage, check_image

# No API takes larger images; the limit of the one that is asked is lower.
_LARGEST_BYTES: Final = 2**30


@dataclass(frozen=True)
class ImageFile:
    """An image that jobs can use as a reference, in memory.

    Attributes:
        name: what messages call it.
    """

    name: str
    data: bytes = field(repr=False)
    image: CheckedImage


def read_image(path: Path) -> ImageFile:
    """Read and check an image file.

    Raises:
        UploadRefused: the file cannot be read, or no job could use it.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _LARGEST_BYTES:
            raise UploadRefused(f"{path} has {size_bytes:,} bytes, which no reference image may have")
        data = path.read_bytes()
    except OSError as error:
        raise UploadRefused(f"{path} cannot be read: {error.strerror or error}; name an image file") from error
    return check_data(data, name=str(path))


def check_data(data: bytes, *, name: str = "the image") -> ImageFile:
    """Check the bytes of an image file; raises `UploadRefused` if no job could use them."""
    try:
        return ImageFile(name, data, check_image(data))
    except ReferenceRefused as error:
        raise UploadRefused(f"{name}: {error}") from error


def image_has_changed(path: Path) -> UploadRefused:
    """Return the refusal of a file that was uploaded with other bytes than it was checked with."""
    return UploadRefused(f"{path} has changed while the command ran; run it again when nothing writes the file")
