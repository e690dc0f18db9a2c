"""Measure images of few steps: the presets of the model, and the models that were distilled from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from benchmarks.gpu.image_times import time_image
from benchmarks.gpu.session import GUIDANCE, Session
from shared.catalog import MODELS, find_model


class FewSteps(NamedTuple):
    """What an image of few steps is rendered with.

    Attributes:
        sigmas: noise levels; empty for AI Toolkit's.
    """

    name: str
    steps: int
    guidance_scale: float
    sigmas: tuple[float, ...]


def few_steps_of(model_id: str) -> Iterator[FewSteps]:
    """Yield the presets of a model, and the defaults of models of its shapes that were distilled from it."""
    model = find_model(model_id)
    for preset in model.presets:
        sigmas = preset.sigmas or ()
        steps = len(sigmas) or preset.sample_steps or model.default_steps
        guidance_scale = model.default_guidance_scale if preset.guidance_scale is None else preset.guidance_scale
        yield FewSteps(f"preset {preset.name}", steps, guidance_scale, sigmas)
    for other in MODELS.values():
        if other.distilled_from == model_id:
            yield FewSteps(other.id, other.default_steps, other.default_guidance_scale, ())


def measure_few_steps(session: Session) -> None:
    """Compare images of few steps with one of the plan's number of steps, at every size.

    The adapter of a preset is left out: merged adapters cost a step nothing.
    """
    for size in session.plan.sizes:
        usual_s = _measure(session, size, FewSteps("", session.plan.steps, GUIDANCE, ()))[0]
        for way in few_steps_of(session.components.model):
            total_s, seconds = _measure(session, size, way)
            session.report.add(
                f"few steps: {way.name}",
                engine=session.engine_name,
                size=size,
                seconds=total_s,
                ratio=total_s / usual_s,
                against=f"{session.plan.steps} steps",
                steps=way.steps,
                guidance_scale=way.guidance_scale,
                **{f"{stage}_s": value for stage, value in seconds.items()},
            )


def _measure(session: Session, size: int, way: FewSteps) -> tuple[float, dict[str, float]]:
    """Return the seconds of an image, in all and by stage, after another one that pays for compiling."""

    def denoise() -> Tensor:
        latents, _ = session.denoise(
            session.exact, size, way.steps, guidance_scale=way.guidance_scale, sigmas=way.sigmas
        )
        return latents

    time_image(session, session.exact, denoise, steps=way.steps)
    seconds, _ = time_image(session, session.exact, denoise, steps=way.steps)
    return sum(seconds.values()), seconds
