"""Draw tables of figures as pixels.

Each figure is a signed distance function, so a picture has sharp edges at any size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Drawing styles: filled, white lines on blue, and glowing lines on black.
STYLES = ("plain", "blueprint", "neon")


def draw(
    figures: Tensor, backgrounds: Tensor, *, height: int, width: int, style: str = "plain", figure: Any = None
) -> Tensor:
    """Draw pictures, (batch, 3, height, width), from -1 to 1.

    Args:
        figures: (batch, slots, fields); for the fields see `tools.train_tiny.data`; an empty slot has radius 0.
        backgrounds: (batch, fields).
        figure: a compiled version of `draw_figure`, if there is one.
    """
    draw_one = figure or draw_figure
    short = min(height, width)
    rows = (torch.arange(height, device=figures.device) + 0.5) / height * 2 - 1
    columns = (torch.arange(width, device=figures.device) + 0.5) / width * 2 - 1
    pixel = 2 / short
    pictures = _background(backgrounds, rows, columns)
    y, x = (rows * height / short)[None, :, None], (columns * width / short)[None, None, :]
    if style == "blueprint":
        grid = (torch.remainder(x, 0.25) < 2 * pixel) | (torch.remainder(y, 0.25) < 2 * pixel)
        navy = torch.tensor([0.06, 0.2, 0.5], device=figures.device).view(1, 3, 1, 1)
        pictures = (navy + 0.1 * grid.float()[:, None]).expand_as(pictures)
        ground = pictures
    elif style == "neon":
        pictures = torch.full_like(pictures, 0.02)
    for slot in range(figures.shape[1]):
        now = figures[:, slot].view(figures.shape[0], -1, 1, 1)  # (batch, fields, 1, 1)
        distance, colour = draw_one(now, x, y, width / short, height / short, pixel)
        cover = (0.5 - distance / pixel).clamp(0, 1)
        if style == "plain":
            pictures = torch.lerp(pictures, colour, cover)
        elif style == "blueprint":
            pictures = torch.lerp(pictures, ground, cover)
            line = (0.5 - (distance.abs() - 0.022) / pixel).clamp(0, 1)
            pictures = torch.lerp(pictures, torch.ones_like(pictures), 0.95 * line)
        else:
            glow = torch.exp(-distance.abs() / 0.07) * 0.75 + (0.5 - (distance.abs() - 0.02) / pixel).clamp(0, 1)
            hue = 0.25 + 0.75 * now[:, 6:9]
            pictures = torch.lerp(pictures, torch.full_like(pictures, 0.02), 0.9 * cover)
            pictures = torch.maximum(pictures, (glow * hue).clamp(0, 1) * (now[:, 3:4] > 0))
    return pictures * 2 - 1


def _background(backgrounds: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    kind, first, second = backgrounds[:, 0], backgrounds[:, 1:4, None, None], backgrounds[:, 4:7, None, None]
    down, right = (rows[None, None, :, None] + 1) / 2, (columns[None, None, None, :] + 1) / 2
    vertical = (kind == 1).float().view(-1, 1, 1, 1)
    weight = vertical * down + (1 - vertical) * right
    return torch.lerp(first.expand(-1, -1, len(rows), len(columns)), second, weight)


def draw_figure(figure: Tensor, x: Tensor, y: Tensor, wide: float, high: float, pixel: float) -> tuple[Tensor, Tensor]:
    """Return each pixel's distance to the figure's edge, (batch, 1, height, width), negative inside, and colours."""
    shape, left, top, radius, aspect, angle = (figure[:, index] for index in range(6))
    radius = radius.clamp(min=1e-3)
    dx, dy = x - left * wide, y - top * high
    cosine, sine = torch.cos(angle), torch.sin(angle)
    u, v = (cosine * dx + sine * dy) / radius, (-sine * dx + cosine * dy) / (radius * aspect)
    distance = torch.zeros_like(u)
    for index, form in enumerate(FORMS):
        chosen = shape == index
        if torch.compiler.is_compiling() or bool(chosen.any()):
            distance = torch.where(chosen, form(u, v), distance)
    distance = torch.where(figure[:, 3] > 0, distance * radius, torch.ones_like(distance) * 9)
    return distance[:, None], _texture(figure, dx, dy, pixel)


def _texture(figure: Tensor, dx: Tensor, dy: Tensor, pixel: float) -> Tensor:
    texture, frequency = figure[:, 9], figure[:, 13]
    waves_x, waves_y = (torch.sin(math.pi * frequency * part + 0.8) for part in (dx, dy))
    pattern = torch.where(texture == 1, waves_y, torch.where(texture == 2, waves_x, waves_x * waves_y))
    pattern = torch.where(texture == 3, waves_x * waves_x + waves_y * waves_y - 1.35, pattern)
    edge = 1 / (math.pi * frequency * pixel)
    mask = ((pattern * edge + 0.5).clamp(0, 1) * (texture > 0).float())[:, None]
    return torch.lerp(figure[:, 6:9].expand(-1, -1, *mask.shape[2:]), figure[:, 10:13], mask)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.86


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v, 0.866 * u.abs() - 0.5 * v) - 0.5


def _star(u: Tensor, v: Tensor) -> Tensor:
    tip = math.pi / 5
    folded = (torch.remainder(torch.atan2(u, -v) + tip, 2 * tip) - tip).abs()
    radius = torch.hypot(u, v)
    inner = (0.42 * math.cos(tip), 0.42 * math.sin(tip))
    edge = math.hypot(inner[0] - 1, inner[1])
    normal = (inner[1] / edge, (1 - inner[0]) / edge)
    return (radius * torch.cos(folded) - 1) * normal[0] + radius * torch.sin(folded) * normal[1]


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.72).abs() - 0.27


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 0.95, v - 0.31), torch.maximum(u - 0.31, v - 0.95))


def _heart(u: Tensor, v: Tensor) -> Tensor:
    a, b = u.abs() * 0.62, 0.55 - v * 0.62
    upper = torch.hypot(a - 0.25, b - 0.75) - math.sqrt(2) / 4
    slope = 0.5 * (a + b).clamp(min=0)
    lower = torch.sqrt(torch.minimum(a.square() + (b - 1).square(), (a - slope).square() + (b - slope).square()) + 1e-9)
    return torch.where(a + b > 1, upper, lower * torch.sign(a - b)) / 0.62


def _diamond(u: Tensor, v: Tensor) -> Tensor:
    return (u.abs() / 0.72 + v.abs() - 1) * 0.58


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 1, 0.85 - torch.hypot(u - 0.5, v))


def _hexagon(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v.abs() * 0.866 + u.abs() * 0.5, u.abs()) - 0.866


FORMS = (_circle, _square, _triangle, _star, _ring, _cross, _heart, _diamond, _crescent, _hexagon)
