"""Measure the way from noise to the bytes of an image file; encoding the prompt is not included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.gpu.session import Session
from worker.consumer import image_file
from worker.rendering.engine import Engine


def time_image(
    session: Session, engine: Engine, denoise: Callable[[], Tensor], *, steps: int
) -> tuple[dict[str, float], Tensor]:
    """Render one image.

    Args:
        denoise: returns the image's latents.
        steps: denoising steps, which the file states.

    Returns:
        Seconds by stage (denoise, decode, pixels, encode), and the latents.
    """
    done: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for stage, call in (
        ("denoise", denoise),
        ("decode", lambda: engine.decode(done["denoise"])),
        ("pixels", lambda: engine.image(done["decode"][0])),
        ("encode", lambda: image_file.encode(done["pixels"], "png", {"sample_steps": steps})),
    ):
        seconds[stage] = session.clock.seconds(lambda: done.update({stage: call()}))  # noqa: B023 - called at once
    return seconds, done["denoise"]
