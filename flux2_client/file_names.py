"""Name the files of images by a template; no value of an answer can lead out of the folder."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from shared.errors import OutputRefused

if TYPE_CHECKING:
    from flux2_client.models import ImageInfo

ImageT = TypeVar("ImageT", bound="ImageInfo")

DEFAULT_TEMPLATE = "{request_id}-{index}-{seed}.{format}"
FIELDS = ("request_id", "index", "seed", "format", "width", "height", "sha256", "prompt")
_NUMBERS = ("index", "seed", "width", "height")

# Characters that a file system or a shell takes for something else.
_UNSAFE = re.compile(r"[^\w.,+=@-]+")
# Of the 255 bytes that most file systems allow to a name; a letter may take four.
_LONGEST_VALUE_BYTES = 120


def check_template(template: str) -> str:
    """Return the template if it can name files.

    Raises:
        ValueError: it has an unknown field, or leads out of the folder.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is not a template: {error}") from error
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f"{{{name}}} is unknown; use " + ", ".join(f"{{{field}}}" for field in FIELDS))
    path = PurePosixPath(template)
    if not fields or path.is_absolute() or ".." in path.parts or "\\" in template or "\0" in template:
        raise ValueError(f"{template!r} must name a file below the output folder, by at least one {{field}}")
    try:
        template.format_map({name: 0 if name in _NUMBERS else "a" for name in FIELDS})
    except ValueError as error:
        raise ValueError(f"{template!r} is not a template: {error}") from error
    return template


def name_image(image: ImageInfo, template: str) -> Path:
    """Return an image's path relative to the output folder.

    Raises:
        OutputRefused: a value has no such format, e.g. `{prompt:04d}`.
    """
    # An answer's values come from another machine: none may hold a separator or be `..`.
    values = {name: getattr(image, name) for name in FIELDS}
    safe = {name: value if isinstance(value, int) else safe_name(str(value or "")) for name, value in values.items()}
    try:
        path = Path(template.format_map(safe))
    except ValueError as error:
        raise OutputRefused(f"--name {template} cannot name image {image.index}: {error}") from error
    if path.is_absolute() or ".." in path.parts:
        raise OutputRefused(f"--name {template} leads out of the output folder")
    return path


def name_images(images: Sequence[ImageT], template: str) -> dict[Path, ImageT]:
    """Return images by their paths.

    Raises:
        OutputRefused: two images have the same name.
    """
    named: dict[Path, ImageT] = {}
    for image in images:
        path = name_image(image, template)
        if path in named:
            raise OutputRefused(f"--name {template} gives two images the name {path}; add {{index}} or {{request_id}}")
        named[path] = image
    return named


def safe_name(value: str) -> str:
    """Return a text as a part of a file name: no separator, nothing hidden, and not too long."""
    # In a locale without UTF-8 a file's name cannot have every letter; a question mark is unsafe anyway.
    encoding = sys.getfilesystemencoding()
    value = value.encode(encoding, errors="replace").decode(encoding)
    value = (
        _UNSAFE.sub("_", value).lstrip("._").encode(encoding)[:_LONGEST_VALUE_BYTES].decode(encoding, errors="ignore")
    )
    return value.strip("_") or "none"
