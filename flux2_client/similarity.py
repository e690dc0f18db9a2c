"""Compare rendered images with the trainer's samples, in numbers."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from shared.errors import NoSamples

# The trainer names samples [time]__[step, 9 digits]_[count].[ext].
_SAMPLE_NAME = re.compile(r"_(\d{9})_(\d+)\.(?:jpe?g|png|webp)$", re.IGNORECASE)
#: What `find_trainer_samples` looks for, in words for messages.
SAMPLE_NAMES = (
    "names are [time]__[step, 9 digits]_[number of the sample, from 0].jpg, .png or .webp, e.g. 17__000000250_0.jpg"
)
_SHOWN = 3

#: A difference of a few steps in 255 is invisible; difference images show it this many times brighter.
DIFFERENCE_GAIN = 4


@dataclass(frozen=True)
class Similarity:
    """Difference of two images over all pixels and channels.

    Attributes:
        values: number of values.
        differing: number of values that differ.
        mean: mean absolute difference, 0 to 255.
        maximum: largest absolute difference, 0 to 255.
        psnr_db: peak signal-to-noise ratio in decibels; infinite for equal images.
    """

    values: int
    differing: int
    mean: float
    maximum: int
    psnr_db: float


def compare_images(ours: Image.Image, theirs: Image.Image) -> Similarity:
    """Compare two RGB images of the same size.

    Raises:
        ValueError: the sizes differ.
    """
    if ours.size != theirs.size:
        raise ValueError(f"sizes differ: {ours.width}x{ours.height} and {theirs.width}x{theirs.height}")
    histogram = ImageChops.difference(ours.convert("RGB"), theirs.convert("RGB")).histogram()
    # Pillow appends the three channels' histograms of 256 counts each.
    counts = [histogram[step] + histogram[256 + step] + histogram[512 + step] for step in range(256)]
    total = sum(counts)
    mean_square = sum(step * step * count for step, count in enumerate(counts)) / total
    return Similarity(
        values=total,
        differing=total - counts[0],
        mean=sum(step * count for step, count in enumerate(counts)) / total,
        maximum=max(step for step, count in enumerate(counts) if count),
        psnr_db=math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square),
    )


def difference_image(one: Image.Image, other: Image.Image) -> Image.Image:
    """Return the absolute difference of two RGB images of the same size, brightened by `DIFFERENCE_GAIN`."""
    brighter = [min(255, step * DIFFERENCE_GAIN) for step in range(256)] * 3
    return ImageChops.difference(one, other).point(brighter)


def find_trainer_samples(folder: Path) -> dict[int, Path]:
    """Return the trainer's sample images of the last training step, by their index in the config.

    Raises:
        NoSamples: no file in the folder is named as the trainer names samples.
    """
    by_step: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _SAMPLE_NAME.search(path.name)
        if match:
            by_step.setdefault(int(match[1]), {})[int(match[2])] = path
    if not by_step:
        raise NoSamples(f"{folder} has no sample images of the trainer, whose {SAMPLE_NAMES}; {_describe(folder)}")
    return by_step[max(by_step)]


def _describe(folder: Path) -> str:
    """Say what a folder holds instead of samples, and where they may be."""
    names = sorted(path.name for path in folder.iterdir())
    # The trainer writes them into a folder of the job's folder.
    for below in (folder / "samples", *(folder / name / "samples" for name in names)):
        with suppress(OSError):
            if any(_SAMPLE_NAME.search(path.name) for path in below.iterdir()):
                return f"did you mean --samples {below}?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"it holds {', '.join(names[:_SHOWN])}{more}" if names else "it is empty"
