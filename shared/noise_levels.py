"""The rules for noise levels that a request states itself, instead of a number of steps."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from shared.job import SIGMAS_ENGINES, Engine

#: Most denoising steps of an image; each noise level begins one.
MAX_STEPS: Final = 150


def check_noise_levels(levels: Sequence[float]) -> None:
    """Refuse levels that do not decrease strictly to the final 0, which is implied.

    Raises:
        ValueError: names the level.
    """
    # Rounded as the worker rounds them: a step between two equal levels would do nothing.
    rounded = [_to_float32(level) for level in levels]
    for index, (level, following) in enumerate(pairwise([*rounded, 0.0])):
        if level <= following:
            given = [*levels, 0.0]
            raise ValueError(
                f"noise levels must decrease strictly, but {given[index]:g} is followed by {given[index + 1]:g} (level "
                f"{index}); the final 0 is implied"
            )


def sigmas_refusal(engine: Engine) -> str:
    """Say why an engine refuses noise levels."""
    return (
        f"the engine {engine!r} takes no sigmas: its pipeline computes the noise levels from the number of steps; use "
        f"sample_steps, or the engine {' or '.join(map(repr, sorted(SIGMAS_ENGINES)))}"
    )


def _to_float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
