"""Find the figures in a picture from its pixels alone: their colour, shape, place and size.

A figure is a connected region whose colour differs from the border's. Its colour is the nearest name in `COLOURS`, and
its shape is the outline that overlaps it best. The outlines come from the generator of the tiny model's training
pictures, because that generator defines the meaning of the words for the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tools.train_tiny.data import COLOURS, SHAPES
from tools.train_tiny.drawing import FORMS

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.float64]

_SIDE = 128  # pictures are measured at this size
_MIN_DISTANCE = 55  # Euclidean distance in RGB between a figure's pixels and the background
_LEAST_AREA = 0.004  # of the picture; a smaller region is a speck
_OUTLINE = 48  # side of a figure's mask, stretched to its bounding box
_LEAST_OVERLAP = 0.72  # intersection over union; with less overlap the shape is unknown

_PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0),
           "top left": (-1, -1), "top right": (1, -1), "bottom left": (-1, 1), "bottom right": (1, 1)}  # fmt: skip
_MIDDLE = 0.22  # half-width of the middle, with -1..1 across the picture


@dataclass(frozen=True)
class Figure:
    """One figure in a picture.

    Attributes:
        shape: None if no outline fits.
        x, y: centre of the bounding box, -1 to 1, y downwards.
        radius: half of the bounding box's longer side; the picture's own radius is 1.
    """

    colour: str
    shape: str | None
    x: float
    y: float
    radius: float


def figures(image: Image.Image) -> list[Figure]:
    """Return the figures of a picture with a plain background, ordered from left to right."""
    pixels = _pixels(image)
    apart = np.linalg.norm(pixels - _border(pixels), axis=2) > _MIN_DISTANCE
    found = [_figure(region, pixels) for region in _regions(apart) if region.mean() >= _LEAST_AREA]
    return sorted(found, key=lambda figure: figure.x)


def background_colour(image: Image.Image) -> str:
    """Return the name of a plain background's colour."""
    return _nearest(_border(_pixels(image)))


def mistakes(case: Mapping[str, Any], found: list[Figure]) -> list[str]:
    """List how the figures differ from a case of tiny_prompts.json: anything missing, wrong or extra."""
    wrong = []
    total = sum(thing["count"] for thing in case["objects"])
    if len(found) != total:
        wrong.append(f"{len(found)} figures, not {total}")
    groups = [
        [figure for figure in found if (figure.colour, figure.shape) == (thing["colour"], thing["shape"])]
        for thing in case["objects"]
    ]
    for thing, group in zip(case["objects"], groups, strict=True):
        if len(group) != thing["count"]:
            wrong.append(f"{len(group)} {thing['colour']} {thing['shape']}, not {thing['count']}")
        elif not all(_is_there(figure, thing) for figure in group):
            wrong.append(f"{thing['colour']} {thing['shape']} is not {thing.get('place', thing.get('size'))}")
    if "relation" in case and all(groups) and not _is_related(groups[0][0], groups[1][0], case["relation"]):
        wrong.append(f"not {case['relation']}")
    return wrong


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(float)


def _border(pixels: Pixels) -> Pixels:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.asarray(np.median(border, axis=0))


def _nearest(colour: Pixels) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - np.array(COLOURS[name]))))


def _is_there(figure: Figure, thing: Mapping[str, Any]) -> bool:
    if "place" in thing:
        wanted = _PLACES[thing["place"]]
        if tuple(int(np.sign(at)) if abs(at) > _MIDDLE else 0 for at in (figure.x, figure.y)) != wanted:
            return False
    size = thing.get("size")
    return size is None or (figure.radius < 0.28 if size == "small" else figure.radius > 0.48)


def _is_related(first: Figure, second: Figure, relation: str) -> bool:
    right, down = first.x - second.x, first.y - second.y
    return {"left": right < -0.2, "right": right > 0.2, "above": down < -0.2, "below": down > 0.2}[relation]


def _regions(mask: Mask) -> list[Mask]:
    """Split a mask into its connected regions; pixels that touch at a corner count as connected."""
    left, regions = mask.copy(), []
    while left.any():
        start = tuple(np.argwhere(left)[0])
        region, queue = np.zeros_like(mask), deque([start])
        left[start] = False
        while queue:
            row, column = queue.popleft()
            region[row, column] = True
            top, side = max(row - 1, 0), max(column - 1, 0)
            for offset in np.argwhere(left[top : row + 2, side : column + 2]):
                near = (top + int(offset[0]), side + int(offset[1]))
                left[near] = False
                queue.append(near)
        regions.append(region)
    return regions


def _figure(region: Mask, pixels: Pixels) -> Figure:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Figure(
        colour=_nearest(np.median(pixels[region], axis=0)),
        shape=_shape(region[top:bottom, left:right]),
        x=float(left + right) / _SIDE - 1,
        y=float(top + bottom) / _SIDE - 1,
        radius=float(max(bottom - top, right - left)) / _SIDE,
    )


def _shape(mask: Mask) -> str | None:
    outline = _stretched(mask)
    overlaps = {name: _overlap(outline, other) for name, other in _outlines().items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= _LEAST_OVERLAP else None


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _stretched(mask: Mask) -> Mask:
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((_OUTLINE, _OUTLINE), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


@lru_cache(maxsize=1)
def _outlines() -> dict[str, Mask]:
    steps = torch.linspace(-1.1, 1.1, 240)
    outlines = {}
    for name, form in zip(SHAPES, FORMS, strict=True):
        mask = (form(steps[None, :].expand(240, 240), steps[:, None].expand(240, 240)) < 0).numpy()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        outlines[name] = _stretched(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return outlines
