"""Measure steps on several devices of the host that render one image together, and whether their bits are one device's.

This process leads; it starts one follower for each further device, as a worker with `--gpus-per-slot` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.gpu.session import STEP, Session
from shared.settings import ModelSettings
from worker.rendering.denoise import OnStep
from worker.rendering.engine import DenoisingInputs
from worker.rendering.followers import Followers
from worker.rendering.native_engine import ExactEngine

# As for the other steps: GPUs lower their clocks under load.
_HEAT_S = 3.0
_LARGEST = 8


def parallel_devices(device: torch.device, count: int | None) -> list[torch.device]:
    """Return the devices that render together: `count`, or 8, 4 or 2 of the GPUs that this process sees."""
    if device.type == "cpu":
        return [device] * (count or 1)
    count = count or max(number for number in (1, 2, 4, _LARGEST) if number <= torch.cuda.device_count())
    first = device.index or 0
    return [torch.device("cuda", first), *(torch.device("cuda", at) for at in range(count) if at != first)][:count]


def measure_parallel(session: Session, settings: ModelSettings, devices: Sequence[torch.device]) -> None:
    """Report the time of a step on one and on all devices, at every size, and the elements that differ.

    Args:
        settings: of the session's model.
        devices: the session's device first.
    """
    # First: in a group, a device that renders alone copies a part of each single-stream block's first product.
    of_one = {size: _time(session, _Together(session.exact, None), size) for size in session.plan.sizes}
    followers = Followers(settings, devices[1:], hf_token=None, adapter_cache_bytes=0)
    try:
        followers.join(session.components)
        typical = session.renderer.inputs.typical_call()
        seconds = session.clock.seconds(lambda: followers.check(session.exact, typical))
        session.report.add("parallel: first steps", engine=session.engine_name, seconds=seconds)
        if followers.devices > 1:
            for size, alone in of_one.items():
                _measure_size(session, followers, size, alone)
    finally:
        followers.close()


def _measure_size(session: Session, followers: Followers, size: int, alone: tuple[float, Tensor]) -> None:
    one, expected = alone
    several, latents = _time(session, _Together(session.exact, followers), size)
    for count, median_ms in ((1, one), (followers.devices, several)):
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


def _time(session: Session, engine: _Together, size: int) -> tuple[float, Tensor]:
    """Return the median milliseconds of a step, and the latents after the steps."""
    steps = session.plan.repeat + 1
    session.denoise(engine, size, 1)  # type: ignore[arg-type]
    until = time.perf_counter() + (_HEAT_S if session.clock.device.type == "cuda" else 0)
    while time.perf_counter() < until:
        session.denoise(engine, size, steps)  # type: ignore[arg-type]
    latents, times = session.denoise(engine, size, steps)  # type: ignore[arg-type]
    return statistics.median(times), latents


class _Together:
    """The part of an engine that denoises, on this device or with the followers."""

    encodes_references: ClassVar[bool] = False

    def __init__(self, engine: ExactEngine, followers: Followers | None) -> None:
        self._engine = engine
        self._followers = followers

    def denoise(self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep) -> Tensor:
        followers = self._followers
        with nullcontext() if followers is None else followers.denoising(noise, run):
            return self._engine.denoise(noise, run, on_step=on_step)
