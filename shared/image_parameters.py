"""Read the parameters that an image file of this service contains."""

from __future__ import annotations

import io
import json
import struct
from typing import Any, Final

from PIL import ExifTags, Image

#: The text chunk of a PNG that has them; JPEG and WebP have them in EXIF.
JSON_CHUNK: Final = "flux2"


def read_parameters(data: bytes) -> dict[str, Any]:
    """Return the parameters that a worker wrote into an image file, by the names of a request.

    Raises:
        ValueError: the data is no image, or an image without parameters.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            text = image.info.get(JSON_CHUNK) or image.getexif().get(ExifTags.Base.ImageDescription)
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError("not a PNG, JPEG or WebP image") from error
    parameters = _parse(text)
    if parameters is None:
        raise ValueError("the image holds no flux2 parameters")
    return parameters


def _parse(text: object) -> dict[str, Any] | None:
    try:
        parameters = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return parameters if isinstance(parameters, dict) else None
