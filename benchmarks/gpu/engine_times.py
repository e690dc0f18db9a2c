"""Measure one engine: the time of a step and of a whole image, and whether its latents equal those of other engines."""

from __future__ import annotations

import statistics
import time
from functools import partial

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.ceilings import BF16, FP8
from benchmarks.gpu.image_times import time_image
from benchmarks.gpu.report import Row
from benchmarks.gpu.session import STEP, Session
from worker.kernels.distance import rel_l2
from worker.model.compile import uncompiled
from worker.rendering.engine import Engine

#: Latents of each engine by name, for each measurement and size.
Latents = dict[tuple[str, int], dict[str, Tensor]]

_IMAGE = "image"
# These engines must give the same latents as those before them.
_EQUAL = ("ai-toolkit", "exact", "compiled")
# A GPU lowers its clock under load. Without this warm-up only the first engine would run on a cool GPU.
_HEAT_S = 3.0


class EngineTimes:
    """Measures the engines of one model.

    Args:
        latents: latents from the models measured before this one; this object adds its own.
    """

    def __init__(self, session: Session, latents: Latents) -> None:
        self._session = session
        self._latents = latents
        self._flops: dict[int, int] = {}  # of one step, by size

    def measure(self, name: str, *, step: bool, image: bool) -> None:
        """Measure an engine at every size."""
        session, engine = self._session, self._session.engine(name)
        drift: Row = {}
        for size in session.plan.sizes:
            first_s = session.clock.seconds(lambda: session.denoise(engine, size, 1))  # noqa: B023 - called at once
            if name == "fast" and not drift:
                renderer = session.renderer
                drift["drift"] = renderer.swapper.fp8_error(partial(engine.predict, renderer.inputs.typical_call()))
            # At the first size the first step includes compiling, if the engine is compiled.
            notes: Row = {"first_s": first_s, **drift}
            if session.plan.references:
                notes["references"] = session.plan.references
            if step:
                self._measure_step(name, engine, size, notes)
            if image:
                self._measure_image(name, engine, size, notes)

    def _measure_step(self, name: str, engine: Engine, size: int, notes: Row) -> None:
        session, repeat = self._session, self._session.plan.repeat
        until = time.perf_counter() + (_HEAT_S if session.clock.device.type == "cuda" else 0)
        while time.perf_counter() < until:
            session.denoise(engine, size, repeat)
        session.clock.reset_peak()
        latents, times = session.denoise(engine, size, repeat + 1)
        median_ms = statistics.median(times)
        session.report.add(
            STEP,
            engine=name,
            size=size,
            median_ms=median_ms,
            **session.report.against(STEP, size=size, engine=name, time=median_ms),
            peak_gb=session.clock.peak_gb(),
            n=len(times),
            **self._rate(name, size, median_ms),
            **notes,
            **self._equality(STEP, name, size, latents, steps=repeat + 1),
        )

    def _rate(self, name: str, size: int, median_ms: float) -> Row:
        """Return the TFLOP/s of a step's products and attention, and their share of the ceiling if it was measured."""
        if size not in self._flops:
            with uncompiled(), FlopCounterMode(display=False) as counter:
                # Of this project's engine: AI Toolkit's encodes reference images in each run.
                self._session.denoise(self._session.exact, size, 1)
            self._flops[size] = counter.get_total_flops()
        tflops = self._flops[size] / median_ms / 1e9
        rows = self._session.report.rows
        ceilings = [row["tflops"] for row in rows if row["what"] == (FP8 if name == "fast" else BF16)]
        return {"tflops": tflops, "of_ceiling": tflops / ceilings[-1] if ceilings else None}

    def _measure_image(self, name: str, engine: Engine, size: int, notes: Row) -> None:
        """Measure the way from noise to the bytes of a file; encoding the prompt is not included."""
        session = self._session
        engine.decode(session.denoise(engine, size, 1)[0])
        session.clock.reset_peak()
        steps = session.plan.steps
        seconds, latents = time_image(session, engine, lambda: session.denoise(engine, size, steps)[0], steps=steps)
        total = sum(seconds.values())
        session.report.add(
            _IMAGE,
            engine=name,
            size=size,
            seconds=total,
            **session.report.against(_IMAGE, size=size, engine=name, time=total),
            peak_gb=session.clock.peak_gb(),
            steps=steps,
            **{f"{stage}_s": value for stage, value in seconds.items()},
            **notes,
            **self._equality(_IMAGE, name, size, latents, steps=steps),
        )

    def _equality(self, what: str, name: str, size: int, latents: Tensor, *, steps: int) -> Row:
        """Count the elements in which an engine's latents differ from those of the engines before it."""
        before = self._latents.setdefault((what, size), {})
        notes: Row = {"finite": bool(latents.isfinite().all())}
        if name == "fast" and before:
            notes |= {"relative_error": rel_l2(latents, next(iter(before.values()))), "after_steps": steps}
        if name in _EQUAL:
            if before:
                notes["differing"] = {other: int((latents != kept).sum()) for other, kept in before.items()}
                notes |= {"of": latents.numel(), "after_steps": steps}
            before[str(name)] = latents
        return notes
