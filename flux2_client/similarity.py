"""How alike a rendered image and the trainer's sample are, and both side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from shared.errors import NoSamples

# The trainer names samples [time]__[step, 9 digits]_[count].[ext].
_SAMPLE = re.compile(r"_(\d{9})_(\d+)\.(?:jpe?g|png|webp)$", re.IGNORECASE)
_GAP = 8
# What differs is shown this much brighter in the contact sheet.
_GAIN = 4


@dataclass(frozen=True)
class Similarity:
    """Difference of two images over all channels, in steps of 255; `psnr_db` is infinite for equal ones."""

    mean: float
    maximum: int
    psnr_db: float


def compare(ours: Image.Image, theirs: Image.Image) -> Similarity:
    """Compare two RGB images of one size.

    Raises:
        ValueError: the sizes differ.
    """
    if ours.size != theirs.size:
        raise ValueError(f"{ours.width}x{ours.height} against {theirs.width}x{theirs.height}")
    histogram = ImageChops.difference(ours.convert("RGB"), theirs.convert("RGB")).histogram()
    counts = [histogram[step] + histogram[256 + step] + histogram[512 + step] for step in range(256)]
    total = sum(counts)
    square = sum(step * step * count for step, count in enumerate(counts)) / total
    return Similarity(
        mean=sum(step * count for step, count in enumerate(counts)) / total,
        maximum=max(step for step, count in enumerate(counts) if count),
        psnr_db=math.inf if square == 0 else 10 * math.log10(255**2 / square),
    )


def trainer_samples(folder: Path) -> dict[int, Path]:
    """Find the trainer's sample images of the last training step that has any, by their place in the config.

    Raises:
        NoSamples: there are none.
    """
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _SAMPLE.search(path.name)
        if match:
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if not found:
        raise NoSamples(f"{folder}: no sample images")
    return found[max(found)]


def contact_sheet(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Draw a row a pair: theirs, ours, and the difference brightened."""
    rows = [(theirs.convert("RGB"), ours.convert("RGB")) for ours, theirs in pairs]
    width = max(theirs.width for theirs, _ in rows) * 3 + 2 * _GAP
    height = sum(theirs.height + _GAP for theirs, _ in rows) - _GAP
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for theirs, ours in rows:
        difference = ImageChops.difference(ours, theirs).point([min(255, step * _GAIN) for step in range(256)] * 3)
        for column, picture in enumerate((theirs, ours, difference)):
            sheet.paste(picture, (column * (theirs.width + _GAP), top))
        top += theirs.height + _GAP
    return sheet
