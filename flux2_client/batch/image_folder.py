"""Save the images of a batch under the custom_ids of their lines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flux2_client.file_names import safe_name

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncImage

_DIGEST_DIGITS: Final = 12


async def save_images(images: Sequence[AsyncImage], folder: Path, *, stem: str) -> list[Path]:
    """Download images into a folder; return their paths, in the order of the images.

    An image that is there already is kept. Names are `STEM-INDEX.FORMAT`.

    Raises:
        ApiError: an image cannot be fetched.
        OutputRefused: a file cannot be written.
    """
    return [await image.save(folder / f"{stem}-{image.index}.{safe_name(image.format)}") for image in images]


def file_stem(custom_id: str, *, owns_name: bool) -> str:
    """Return the beginning of file names for a custom_id: another one for each, without a separator of folders.

    Args:
        owns_name: false if another custom_id of the batch, which differs in case alone, has the name without a digest:
            the file systems of macOS and Windows take both for one.
    """
    name = safe_name(custom_id)
    if name == custom_id and owns_name:
        return name
    digest = hashlib.sha256(custom_id.encode(errors="surrogatepass")).hexdigest()
    return f"{name}-{digest[:_DIGEST_DIGITS]}"
