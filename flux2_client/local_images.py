"""Reference images of a request that are files of this host: find them, upload each once, and name the uploads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flux2_client.composition import REFERENCE_FIELDS, reference_texts
from flux2_client.image_file import image_has_changed, read_image
from shared.errors import UploadRefused

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient
    from flux2_client.report import Report

# A letter alone is a drive of Windows.
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
# The smallest images have more characters in base64, and few paths have as many without a dot.
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_=\s-]{100,}")
# Uploads at the same time: one alone would wait for its answer most of the time.
_PARALLEL: Final = 4


@dataclass(frozen=True)
class LocalImages:
    """The files that a request names.

    Attributes:
        paths: one file of each content, by its sha256.
        digests: the sha256 of the file that a text of the request names.
    """

    paths: Mapping[str, Path]
    digests: Mapping[str, str]


def find_local_images(request: Mapping[str, Any]) -> LocalImages:
    """Check the files of this host that the prompts of a request name as references.

    Raises:
        UploadRefused: a text is neither a file of this host nor an address nor an image in base64; or a file cannot be
            read, or no job could use it.
    """
    paths: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for text in dict.fromkeys(text for prompt in request["prompts"] for text in reference_texts(prompt)):
        if is_elsewhere(text):
            continue
        path = Path(text)
        if not _is_file(path):
            if _BASE64.fullmatch(text):
                continue
            raise UploadRefused(
                f"{text[:100]!r} is no file of this host; give an image file, an https:// or s3:// address, or "
                "upload:SHA256"
            )
        digests[text] = read_image(path).image.sha256
        paths.setdefault(digests[text], path)
    return LocalImages(paths, digests)


def name_uploads(request: Mapping[str, Any], images: LocalImages) -> dict[str, Any]:
    """Return the request with the names that the files will have as uploads, before they are uploaded."""
    return _replace(request, {text: f"upload:{sha256}" for text, sha256 in images.digests.items()})


async def upload_local_images(
    client: AsyncClient, request: Mapping[str, Any], images: LocalImages, report: Report | None = None
) -> dict[str, Any]:
    """Upload each file once; return the request with the uploads in place of the files.

    Raises:
        UploadRefused: a file cannot be read any more, or has changed since it was found.
        ApiError: the API refuses an image, or cannot be reached.
    """
    turns = asyncio.Semaphore(_PARALLEL)

    async def upload(sha256: str, path: Path) -> str:
        async with turns:
            stored = await client.upload_image(path)
        # Other paths had the same content then, and may have it still.
        if stored.sha256 != sha256:
            raise image_has_changed(path)
        if report is not None:
            report.uploaded(stored, path)
        return stored.path

    names = await asyncio.gather(*(upload(sha256, path) for sha256, path in images.paths.items()))
    uploads = dict(zip(images.paths, names, strict=True))
    return _replace(request, {text: uploads[sha256] for text, sha256 in images.digests.items()})


def _replace(request: Mapping[str, Any], uploads: Mapping[str, str]) -> dict[str, Any]:
    prompts = [
        {
            name: uploads.get(value, value) if name in REFERENCE_FIELDS and isinstance(value, str) else value
            for name, value in prompt.items()
        }
        for prompt in request["prompts"]
    ]
    return {**request, "prompts": prompts}


def is_elsewhere(text: str) -> bool:
    """Whether a text that names a reference image is an address, and no file of this host."""
    return bool(_ADDRESS.match(text)) and not _is_file(Path(text))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # An image in base64 is longer than a path may be.
    except (OSError, ValueError):
        return False
