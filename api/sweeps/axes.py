"""The values that the images of a sweep have, by the place of an image among those of one adapter list.

Images vary in the order prompt, size, steps, guidance scale, seed; the last varies fastest.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class _Stored(BaseModel):
    """A part of a sweep's record, which the ledger holds as JSON; fields of a newer version are dropped."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Values(_Stored):
    """What an image has of the axes; of a prompt, what it has where no axis replaces it.

    Attributes:
        width: in pixels, as requested.
    """

    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float


class Choice(NamedTuple):
    """The index of an image's value on each axis; None where the axis is empty, and the prompt's own value holds."""

    prompt: int
    size: int | None
    steps: int | None
    guidance_scale: int | None
    seed: int | None


class Axes(_Stored):
    """The axes of a sweep within one adapter list.

    Attributes:
        texts: of the prompts, with their trigger words filled in.
        prompts: what each prompt has by itself.
        sizes: widths and heights in pixels.
    """

    texts: tuple[str, ...]
    prompts: tuple[Values, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    def choice(self, place: int) -> Choice:
        """Return which value of each axis the image at a place has."""
        chosen: list[int | None] = []
        for axis in (self.seeds, self.guidance_scales, self.steps, self.sizes):
            place, index = divmod(place, len(axis) or 1)
            chosen.append(index if axis else None)
        seed, guidance_scale, steps, size = chosen
        return Choice(place, size, steps, guidance_scale, seed)

    def values(self, place: int) -> Values:
        """Return the values of the image at a place."""
        choice = self.choice(place)
        own = self.prompts[choice.prompt]
        width, height = (own.width, own.height) if choice.size is None else self.sizes[choice.size]
        return Values(
            seed=own.seed if choice.seed is None else self.seeds[choice.seed],
            width=width,
            height=height,
            steps=own.steps if choice.steps is None else self.steps[choice.steps],
            guidance_scale=(
                own.guidance_scale if choice.guidance_scale is None else self.guidance_scales[choice.guidance_scale]
            ),
        )


class JobPart(_Stored):
    """The images of a sweep that one job renders.

    Attributes:
        checkpoint: label; None if the sweep has no checkpoints.
        multiplier: None for the base model, and without checkpoints.
        first: place of its first image among those of its adapter list.
    """

    checkpoint: str | None
    multiplier: float | None
    first: int
    images: int


class SweepRecord(_Stored):
    """What the API stores about a sweep, to describe it later.

    Attributes:
        jobs: in the order of the sweep's jobs in the ledger.
    """

    axes: Axes
    jobs: tuple[JobPart, ...]
    warnings: tuple[str, ...] = ()
    preset: str | None = None

    @property
    def images(self) -> int:
        return sum(job.images for job in self.jobs)
