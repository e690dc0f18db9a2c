"""Render the same prompts two ways, save the images, and measure how much they differ."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from flux2_client.composition import draw_seeds, fill_seeds
from flux2_client.following import follow_jobs
from flux2_client.similarity import Similarity, compare_images, difference_image
from flux2_client.submission import SubmittedPart, default_seed, submit_request
from shared.errors import ApiError, ApiUnreachable

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient, AsyncImage
    from flux2_client.report import Report
    from flux2_client.terminal import Session
    from flux2_client.way import Way

#: Folder of the images, below that of the page.
IMAGES: Final = "images"

_DOWNLOADS: Final = 8
# Difference images are for the eye: a lossy file is a tenth of a PNG.
_DIFFERENCE_QUALITY: Final = 80


@dataclass(frozen=True)
class Rendering:
    """One image of one way.

    Attributes:
        file: name of its file in the folder of images.
        denoise_s: seconds of its denoising; None if unknown.
        ran: how it was rendered, in words.
    """

    file: str
    denoise_s: float | None
    ran: str


@dataclass(frozen=True)
class Pair:
    """One prompt, rendered both ways.

    Attributes:
        number: from 1, in the order of the prompts.
        a, b: None for an image that failed.
        difference: name of the file of their brightened difference; None without both images.
    """

    number: int
    prompt: str
    seed: int
    a: Rendering | None
    b: Rendering | None
    difference: str | None
    similarity: Similarity | None


@dataclass(frozen=True)
class Comparison:
    """All pairs of two ways."""

    a: Way
    b: Way
    pairs: tuple[Pair, ...]

    @property
    def psnr_db(self) -> list[float]:
        """The PSNR of each complete pair, in decibels, ascending."""
        return sorted(pair.similarity.psnr_db for pair in self.pairs if pair.similarity)

    @property
    def median_psnr_db(self) -> float | None:
        """Median over the complete pairs; None without one."""
        return statistics.median(self.psnr_db) if self.psnr_db else None

    def renderings(self, way: Way) -> list[Rendering]:
        """Return the images of one of the two ways."""
        found = [pair.a if way is self.a else pair.b for pair in self.pairs]
        return [rendering for rendering in found if rendering is not None]

    def median_denoise_s(self, way: Way) -> float | None:
        """Return the median seconds of denoising of a way's images; None if none is known."""
        # The median, because the first images of a way may wait for an adapter's weights.
        seconds = [rendering.denoise_s for rendering in self.renderings(way) if rendering.denoise_s is not None]
        return statistics.median(seconds) if seconds else None


async def run_comparison(
    client: AsyncClient,
    request: Mapping[str, Any],
    ways: tuple[Way, Way],
    folder: Path,
    *,
    session: Session,
    report: Report,
) -> tuple[Comparison, int]:
    """Render a request both ways; return the pairs, and the exit code of the jobs.

    Args:
        folder: gets the images.

    Raises:
        UploadRefused, ApiError: see `submit_request`.
    """
    # The same seeds, also if the models of the two ways have other defaults or the API would draw them.
    request = fill_seeds(draw_seeds(request), first=default_seed(request, await client.models()))
    parts = await _submit(client, [way.apply(request) for way in ways], session=session, report=report)
    code = await follow_jobs(client, session.jobs, report=report, to=None)
    (folder / IMAGES).mkdir(exist_ok=True)
    a, b = [await _save(client, one, way, folder) for one, way in zip(parts, ways, strict=True)]
    pairs = [
        await asyncio.to_thread(_pair, index, prompt, a.get(index), b.get(index), folder)
        for index, prompt in enumerate(request["prompts"])
    ]
    return Comparison(*ways, tuple(pairs)), code


async def _submit(
    client: AsyncClient, requests: Sequence[Mapping[str, Any]], *, session: Session, report: Report
) -> list[list[SubmittedPart]]:
    """Submit the requests of both ways, or neither: if the API refuses the second, the first is canceled."""
    try:
        return [await submit_request(client, request, session=session, report=report) for request in requests]
    except ApiUnreachable:
        raise
    except ApiError:
        for request_id in session.jobs:
            await client.cancel(request_id)
        session.jobs.clear()
        raise


async def _save(client: AsyncClient, parts: Sequence[SubmittedPart], way: Way, folder: Path) -> dict[int, Rendering]:
    """Save the images of one way; return them by the index of their prompt in the whole request."""
    turns = asyncio.Semaphore(_DOWNLOADS)
    images: dict[int, AsyncImage] = {}
    first = 0
    for part in parts:
        images |= {first + image.index: image for image in (await client.result(part.request_id)).images}
        first += part.images

    async def save(index: int, image: AsyncImage) -> Rendering:
        name = f"{index + 1:04d}-{way.label.lower()}.{image.format}"
        async with turns:
            await image.save(folder / IMAGES / name)
        return Rendering(name, image.timings.get("denoise"), _describe(image))

    saved = await asyncio.gather(*(save(index, image) for index, image in images.items()))
    return dict(zip(images, saved, strict=True))


def _pair(index: int, prompt: Mapping[str, Any], a: Rendering | None, b: Rendering | None, folder: Path) -> Pair:
    difference = similarity = None
    if a is not None and b is not None:
        one, other = (_open(folder / IMAGES / rendering.file) for rendering in (a, b))
        # Models may round sizes by other divisors.
        if one.size == other.size:
            similarity = compare_images(one, other)
            difference = f"{index + 1:04d}-difference.webp"
            difference_image(one, other).save(folder / IMAGES / difference, quality=_DIFFERENCE_QUALITY)
    return Pair(index + 1, prompt["prompt"], prompt["seed"], a, b, difference, similarity)


def _open(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _describe(image: AsyncImage) -> str:
    """Say how an image was rendered, as its result states it."""
    levels = f" at {', '.join(f'{level:g}' for level in image.sigmas)}" if image.sigmas else ""
    steps = "unknown steps" if image.sample_steps is None else f"{image.sample_steps} steps{levels}"
    guidance = "" if image.guidance_scale is None else f", guidance {image.guidance_scale:g}"
    adapters = [f"{adapter.path} at {adapter.multiplier:g}" for adapter in image.adapters]
    how = [f"engine {image.pipeline.engine} ({image.pipeline.precision})", *adapters]
    preset = f", preset {image.preset}" if image.preset else ""
    return f"{steps}{guidance}{preset}, {', '.join(how)}"
