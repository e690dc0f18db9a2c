"""Measure the way from noise to the bytes of an image file; encoding the prompt is not included."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.gpu.latents_comparison import LatentsComparison
from benchmarks.gpu.report import Row
from benchmarks.gpu.sampling import Sampling, few_steps_of, usual_sampling
from benchmarks.gpu.session import Session
from worker.consumer import image_file
from worker.model.fp8 import attends_in_float8
from worker.rendering.engine import Engine

_IMAGE = "image"


class TimedImage(NamedTuple):
    """One rendered image.

    Attributes:
        stages_s: seconds by stage: denoise, decode, pixels, encode.
        peak_gb: peak memory of tensors; None on a CPU.
        attention: its precision, `bf16` or `fp8`.
    """

    stages_s: dict[str, float]
    latents: Tensor
    peak_gb: float | None
    attention: str

    @property
    def total_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages_s.values())


class ImageTimes:
    """Measures and reports images on one device, each only once."""

    def __init__(self, session: Session, comparison: LatentsComparison) -> None:
        self._session = session
        self._comparison = comparison
        self._usual = usual_sampling(session.plan.steps)
        self._images: dict[tuple[str, int, str], TimedImage] = {}

    def measure_usual(self, name: str, size: int) -> TimedImage:
        """Return an engine's image of the plan's number of steps."""
        session, key = self._session, (name, size, self._usual.name)
        if key not in self._images:
            image = self._images[key] = time_image(session, session.engine(name), size, self._usual)
            ratio = session.report.against(_IMAGE, size=size, engine=name, time=image.total_s)
            notes = self._comparison.compare(_IMAGE, name, size, image.latents, steps=self._usual.steps)
            self._report(_IMAGE, name, size, self._usual, **ratio, **notes)
        return self._images[key]

    def measure_all(self) -> dict[int, dict[Sampling, TimedImage]]:
        """Return the images of this project's engine by size, of all steps and of few."""
        return {size: self._measure_size(size) for size in self._session.plan.sizes}

    def _measure_size(self, size: int) -> dict[Sampling, TimedImage]:
        """Compare images of few steps with the one of all steps.

        The adapter of a preset is left out: merged adapters cost a step nothing.
        """
        session, name = self._session, self._session.engine_name
        usual = self.measure_usual(name, size)
        images = {self._usual: usual}
        for sampling in few_steps_of(session.components.model):
            key = name, size, sampling.name
            if key not in self._images:
                image = self._images[key] = time_image(session, session.exact, size, sampling)
                ratio = {"ratio": image.total_s / usual.total_s, "against": self._usual.name}
                self._report(f"few steps: {sampling.name}", name, size, sampling, **ratio)
            images[sampling] = self._images[key]
        return images

    def _report(self, what: str, name: str, size: int, sampling: Sampling, **notes: Any) -> None:
        image = self._images[name, size, sampling.name]
        self._session.report.add(what, **image_row(image, name, size, sampling, devices=1), **notes)


def image_row(image: TimedImage, name: str, size: int, sampling: Sampling, *, devices: int) -> Row:
    """Return what the row of every image holds, which `benchmarks.gpu.table` reads."""
    return {
        "engine": name,
        "size": size,
        "seconds": image.total_s,
        "peak_gb": image.peak_gb,
        "sampling": sampling.name,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "devices": devices,
        "attention": image.attention,
        **{f"{stage}_s": seconds for stage, seconds in image.stages_s.items()},
    }


def time_image(session: Session, engine: Engine, size: int, sampling: Sampling) -> TimedImage:
    """Render one image, after others of one step that pay for compiling and warm up the device."""
    first_step = sampling.first_step()
    _render(session, engine, size, first_step)
    session.clock.warm_up(lambda: session.sample(engine, size, first_step))
    session.clock.reset_peak()
    return _render(session, engine, size, sampling)


def _render(session: Session, engine: Engine, size: int, sampling: Sampling) -> TimedImage:
    done: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for stage, call in (
        ("denoise", lambda: session.sample(engine, size, sampling)),
        ("decode", lambda: engine.decode(done["denoise"])),
        ("pixels", lambda: engine.image(done["decode"][0])),
        ("encode", lambda: image_file.encode(done["pixels"], "png", {"sample_steps": sampling.steps})),
    ):
        seconds[stage] = session.clock.seconds(lambda: done.update({stage: call()}))  # noqa: B023 - called at once
    attention = "fp8" if attends_in_float8(session.components.transformer) else "bf16"
    return TimedImage(seconds, done["denoise"], session.clock.peak_gb(), attention)
