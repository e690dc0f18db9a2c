"""Measure the steps of one engine, with and without reference images, and compare their latents with other engines'."""

from __future__ import annotations

import statistics
from functools import cached_property, partial

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.ceilings import BF16, FP8
from benchmarks.gpu.latents_comparison import LatentsComparison
from benchmarks.gpu.report import Row
from benchmarks.gpu.session import STEP, Session
from worker.model.compile import uncompiled
from worker.model.fp8 import attention_in_bfloat16


class StepTimes:
    """Measures the steps of one model's engines."""

    def __init__(self, session: Session, comparison: LatentsComparison) -> None:
        self._session = session
        self._comparison = comparison
        self._flops: dict[tuple[int, int], int] = {}  # of one step, by size and number of references

    def measure(self, name: str, size: int, *, references: int = 0) -> None:
        """Report the time of an engine's step.

        Args:
            references: number of reference images.
        """
        session, engine, repeat = self._session, self._session.engine(name), self._session.plan.repeat
        what = f"references: step with {references}" if references else STEP
        denoise = partial(session.denoise, engine, size, references=references)
        # At the first size the first step includes compiling, if the engine is compiled.
        first_s = session.clock.seconds(lambda: denoise(1))
        session.clock.warm_up(lambda: denoise(2))
        session.clock.reset_peak()
        latents, times = denoise(repeat + 1)
        median_ms, peak_gb = statistics.median(times), session.clock.peak_gb()
        session.report.add(
            what,
            engine=name,
            size=size,
            median_ms=median_ms,
            **session.report.against(what, size=size, engine=name, time=median_ms),
            peak_gb=peak_gb,
            n=len(times),
            **self._rate(name, size, references, median_ms),
            first_s=first_s,
            **(self._fp8_error if name == "fast" else {}),
            **({"references": references} if references else {}),
            **self._comparison.compare(what, name, size, latents, steps=repeat + 1),
        )

    def _rate(self, name: str, size: int, references: int, median_ms: float) -> Row:
        """Return the TFLOP/s of a step's products and attention, and their share of the ceiling if it was measured."""
        key = size, references
        if key not in self._flops:
            transformer = self._session.components.transformer
            # Only torch's operations are counted, and attention in float8 is not one of them.
            with uncompiled(), attention_in_bfloat16(transformer), FlopCounterMode(display=False) as counter:
                # Of this project's engine: AI Toolkit's encodes reference images in each run.
                self._session.denoise(self._session.exact, size, 1, references=references)
            self._flops[key] = counter.get_total_flops()
        tflops = self._flops[key] / median_ms / 1e9
        rows = self._session.report.rows
        ceilings = [row["tflops"] for row in rows if row["what"] == (FP8 if name == "fast" else BF16)]
        return {"tflops": tflops, "of_ceiling": tflops / ceilings[-1] if ceilings else None}

    @cached_property
    def _fp8_error(self) -> Row:
        """The distance of a typical step in float8 from one in bfloat16."""
        renderer = self._session.renderer
        call = renderer.inputs.typical_call()
        error = renderer.swapper.fp8_error(partial(self._session.exact.predict, call))
        return {"drift": error.whole, "attention_drift": error.of_attention}
