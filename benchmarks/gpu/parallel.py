"""Measure steps and images on several devices of the host that render one image together, next to one device alone.

This process leads; it starts one follower for each further device, as a worker with `--gpus-per-slot` does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.image_times import TimedImage, image_row, time_image
from benchmarks.gpu.sampling import Sampling
from benchmarks.gpu.session import STEP, Session
from shared.settings import ModelSettings
from worker.model.components import Components
from worker.rendering.denoise import OnEstimate, OnStep
from worker.rendering.engine import DenoisingInputs, Engine
from worker.rendering.followers import Followers
from worker.rendering.native_engine import ExactEngine

_LARGEST = 8


def parallel_devices(device: torch.device, count: int | None) -> list[torch.device]:
    """Return the devices that render together: `count`, or 8, 4 or 2 of the GPUs that this process sees."""
    if device.type == "cpu":
        return [device] * (count or 1)
    count = count or max(number for number in (1, 2, 4, _LARGEST) if number <= torch.cuda.device_count())
    first = device.index or 0
    return [torch.device("cuda", first), *(torch.device("cuda", at) for at in range(count) if at != first)][:count]


def measure_parallel(
    session: Session,
    settings: ModelSettings,
    devices: Sequence[torch.device],
    *,
    images_alone: Mapping[int, Mapping[Sampling, TimedImage]],
) -> None:
    """Report the times on one and on all devices, at every size, and the elements that differ.

    Args:
        settings: of the session's model.
        devices: the session's device first.
        images_alone: the images to measure, by size, as one device has rendered them.
    """
    # First: in a group, a device that renders alone copies a part of each single-stream block's first product.
    steps_alone = {size: _time_steps(session, session.exact, size) for size in session.plan.sizes}
    followers = Followers(settings, devices[1:], hf_token=None, adapter_cache_bytes=0)
    try:
        followers.join(session.components)
        typical = session.renderer.inputs.typical_call()
        seconds = session.clock.seconds(lambda: followers.check(session.exact, typical))
        session.report.add("parallel: first steps", engine=session.engine_name, seconds=seconds)
        if followers.devices > 1:
            engine = _DividedEngine(session.components, followers)
            for size, alone in steps_alone.items():
                _measure_steps(session, engine, size, alone)
                _measure_images(session, engine, size, images_alone.get(size, {}))
    finally:
        followers.close()


class _DividedEngine(ExactEngine):
    """Denoises on all devices; decodes on this one."""

    def __init__(self, components: Components, followers: Followers) -> None:
        super().__init__(components)
        self._followers = followers

    @property
    def devices(self) -> int:
        return self._followers.devices

    def denoise(
        self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep, on_estimate: OnEstimate | None = None
    ) -> Tensor:
        with self._followers.denoising(noise, run):
            return super().denoise(noise, run, on_step=on_step, on_estimate=on_estimate)


def _measure_steps(session: Session, engine: _DividedEngine, size: int, alone: tuple[float, Tensor]) -> None:
    one, expected = alone
    several, latents = _time_steps(session, engine, size)
    for count, median_ms in ((1, one), (engine.devices, several)):
        ratios = session.report.against(STEP, size=size, engine=session.engine_name, time=median_ms)
        session.report.add(
            f"parallel: step on {count}",
            engine=session.engine_name,
            size=size,
            median_ms=median_ms,
            **ratios,
            of_one=median_ms / one,
            differing=int((latents != expected).sum()),
            of=latents.numel(),
        )


def _time_steps(session: Session, engine: Engine, size: int) -> tuple[float, Tensor]:
    """Return the median milliseconds of a step, and the latents after the steps."""
    session.denoise(engine, size, 1)
    session.clock.warm_up(lambda: session.denoise(engine, size, 2))
    latents, times = session.denoise(engine, size, session.plan.repeat + 1)
    return statistics.median(times), latents


def _measure_images(session: Session, engine: _DividedEngine, size: int, alone: Mapping[Sampling, TimedImage]) -> None:
    """Compare images on all devices with those that one device has rendered."""
    for sampling, expected in alone.items():
        image = time_image(session, engine, size, sampling)
        differences = {}
        # Attention in float8 gives other latents.
        if image.attention == expected.attention:
            differing = int((image.latents != expected.latents).sum())
            differences = {"differing": differing, "of": image.latents.numel()}
        session.report.add(
            f"parallel: image on {engine.devices}, {sampling.name}",
            **image_row(image, session.engine_name, size, sampling, devices=engine.devices),
            ratio=image.total_s / expected.total_s,
            against="one device",
            **differences,
        )
