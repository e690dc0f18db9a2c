"""The ways in which images are sampled here: in the usual number of steps, and in few steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.catalog import MODELS, find_model

GUIDANCE = 4.0


class Sampling(NamedTuple):
    """Steps, guidance and noise levels of an image.

    Attributes:
        name: how rows call it: `25 steps`, `preset turbo`, or the id of a distilled model.
        sigmas: noise levels; empty for AI Toolkit's.
    """

    name: str
    steps: int
    guidance_scale: float
    sigmas: tuple[float, ...]

    def first_step(self) -> Sampling:
        """Return the same for an image of one step."""
        return self._replace(steps=1, sigmas=self.sigmas[:1])


def usual_sampling(steps: int) -> Sampling:
    """Return the sampling that images of few steps are compared with."""
    return Sampling(f"{steps} steps", steps, GUIDANCE, ())


def few_steps_of(model_id: str) -> Iterator[Sampling]:
    """Yield the presets of a model, and the defaults of models of its shapes that were distilled from it."""
    model = find_model(model_id)
    for preset in model.presets:
        sigmas = preset.sigmas or ()
        steps = len(sigmas) or preset.sample_steps or model.default_steps
        guidance_scale = model.default_guidance_scale if preset.guidance_scale is None else preset.guidance_scale
        yield Sampling(f"preset {preset.name}", steps, guidance_scale, sigmas)
    for other in MODELS.values():
        if other.distilled_from == model_id:
            yield Sampling(other.id, other.default_steps, other.default_guidance_scale, ())
