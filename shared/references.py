"""The rules for reference images: where their bytes are stored, and what size an image gets before it is encoded.

AI Toolkit calls them control images. The rules are those of its previews, not of its training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from shared.errors import ReferenceRefused

#: Largest number of references of one image.
MAX_REFERENCES: Final = 3
#: The file formats that a reference may have, by Pillow's names.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
#: Largest size of the file of a reference, in bytes.
MAX_FILE_BYTES: Final = 32 * 1024**2

#: Returns the bytes of the reference image with this sha256.
#:
#: Raises:
#:     ReferenceRefused: nobody stored it, or the stored bytes have another sha256.
#:     StorageUnavailable: the store did not answer.
LoadReference = Callable[[str], bytes]

#: Version of the preparation below; encoded images of another version are not the same.
PREPARATION: Final = 1

# default_prep in extensions_built_in/diffusion_models/flux2/src/sampling.py of AI Toolkit at 27a03a91.
_MAX_PIXELS = 1024 * 1024
_MIN_SIDE = 64
# Decoding an image of this size takes 0.3 to 1.1 GB; see `shared.reference_image.read_rgb`.
_MAX_FILE_PIXELS = 2**26
_MAX_ASPECT = 8
_MULTIPLE = 16


class PreparedSize(NamedTuple):
    """The size of a reference image when it is encoded, in pixels.

    Attributes:
        scaled: width and height after scaling, before the crop; those of the file if it is not scaled.
        width, height: multiples of 16.
    """

    scaled: tuple[int, int]
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The crop from the centre of the scaled image: left, top, right, bottom."""
        left, top = (self.scaled[0] - self.width) // 2, (self.scaled[1] - self.height) // 2
        return left, top, left + self.width, top + self.height

    @property
    def rows(self) -> int:
        """Rows of tokens."""
        return self.height // _MULTIPLE

    @property
    def columns(self) -> int:
        """Tokens in a row."""
        return self.width // _MULTIPLE

    @property
    def tokens(self) -> int:
        """The number of tokens that the image adds to each step."""
        return self.rows * self.columns


def prepared_size(width: int, height: int) -> PreparedSize:
    """Return the size that an image of this size has when it is encoded.

    Only an image of more than 1,048,576 pixels is scaled. Nothing is enlarged.

    Raises:
        ReferenceRefused: a side is shorter than 64 pixels, or one is more than 8 times as long as the other.
    """
    if min(width, height) < _MIN_SIDE:
        raise ReferenceRefused(
            f"the image has {width}x{height} pixels; each side of a reference needs at least {_MIN_SIDE}"
        )
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise ReferenceRefused(
            f"the image has {width}x{height} pixels; one side of a reference may be at most {_MAX_ASPECT} times as "
            "long as the other: crop it"
        )
    scaled = (width, height)
    if width * height > _MAX_PIXELS:
        factor = math.sqrt(_MAX_PIXELS / (width * height))
        scaled = (int(width * factor), int(height * factor))  # AI Toolkit truncates both sides
    return PreparedSize(scaled, *(side // _MULTIPLE * _MULTIPLE for side in scaled))


def check_pixels(width: int, height: int) -> None:
    """Refuse an image that takes too much memory to decode.

    Raises:
        ReferenceRefused: it has more than 67,108,864 pixels.
    """
    if width * height > _MAX_FILE_PIXELS:
        raise ReferenceRefused(
            f"the image has {width}x{height} pixels; a reference may have {_MAX_FILE_PIXELS:,} at most: scale it down"
        )


def reference_key(sha256: str) -> str:
    """Return the object key under which the bytes of a reference image are stored."""
    return f"references/{sha256}"
