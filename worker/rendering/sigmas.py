"""Return the noise levels of a rendering: as AI Toolkit chooses them, or as the request gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# The shift is a straight line through these two points, extended to any number of image tokens. Diffusers' schedule for
# FLUX.2 also depends on the number of steps and gives another image (sigmas differ by up to 0.25 at 1024x1024).
_TOKENS = (256, 4096)
_SHIFTS = (0.5, 1.15)


def shift(image_tokens: int) -> float:
    """Return mu, the exponent that shifts the schedule towards high noise; it grows with the number of tokens."""
    slope = (_SHIFTS[1] - _SHIFTS[0]) / (_TOKENS[1] - _TOKENS[0])
    return slope * image_tokens + (_SHIFTS[0] - slope * _TOKENS[0])


def sigmas(steps: int, image_tokens: int) -> list[float]:
    """Return ``steps + 1`` noise levels from 1.0 down to 0.0.

    Args:
        steps: denoising steps, 1 or more.
        image_tokens: latent positions, (height / 16) * (width / 16).

    Source:
        get_schedule in https://github.com/black-forest-labs/flux2/blob/main/src/flux2/sampling.py with AI Toolkit's
        line for mu, both evaluated in float32; s(t) = e^mu / (e^mu + 1/t - 1).
    """
    # The last time is 0, where 1/t is infinite and the level becomes 0.
    times = torch.linspace(1, 0, steps + 1)
    weight = math.exp(shift(image_tokens))
    values: list[float] = (weight / (weight + (1 / times - 1))).tolist()
    return values


def given_sigmas(levels: Sequence[float]) -> list[float]:
    """Return noise levels of a request and the final 0.0.

    Args:
        levels: one for each step, strictly decreasing, above 0 and at most 1.
    """
    # Rounded to float32, as AI Toolkit's schedule is; its own levels therefore give the same bits, also when they were
    # written with the nine digits that float32 needs.
    values: list[float] = torch.tensor([*levels, 0.0], dtype=torch.float32).tolist()
    return values
