"""The measurements of one model: a step, an image, a change of adapters, a prompt, a batch.

Engines run over the same weights, one after another. `compiled` is `exact` with its blocks compiled, and there is no
way back; so what is measured of the product's engine after that is measured compiled. `fast` runs over weights of its
own, in float8.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.ceilings import BF16, FP8
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.models import write_adapter
from benchmarks.gpu.report import Report, Row
from shared.job import AdapterRef, ItemSpec, Progress
from shared.settings import WorkerSettings
from worker.consumer import image_file
from worker.consumer.background import STEP_TO_PREPARE, BackgroundUploader, Prefetcher
from worker.kernels.distance import rel_l2
from worker.model.compile import as_written, compile_blocks
from worker.model.components import Components
from worker.rendering.engine import Engine, Run
from worker.rendering.latents import noise
from worker.rendering.native_engine import ExactEngine
from worker.rendering.prompt_encoder import MAX_TOKENS, embed
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

_SEEDS = (42, 43, 44, 45)
_GUIDANCE = 4.0
# Engines whose latents are to be equal to those of the ones before them.
_EQUAL = ("ai-toolkit", "exact", "compiled")

#: What was measured, of which size, to the latents of each engine.
Latents = dict[tuple[str, int], dict[str, Tensor]]

_STEP, _IMAGE = "step", "image"
# Of steps on a GPU before those that count: its clock comes down under load, and the first engine would find it cool.
_HEAT_S = 3.0
_UNDER_A_STEP = "switch under a step"
_UNDER_TWO_STEPS = "switch under two steps"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: width and height of images, in pixels; parts other than steps and images use the first.
        steps: of an image.
        repeat: how many times the median is of.
        items: images of the batch.
    """

    sizes: tuple[int, ...]
    steps: int
    repeat: int
    items: int


class Parts:
    """Measures one model.

    Args:
        others: engines besides this project's, over the weights of `components`.
        latents: of models that were measured before, and after this: to compare.
    """

    def __init__(
        self,
        components: Components,
        others: Mapping[str, Engine],
        *,
        plan: Plan,
        report: Report,
        clock: Clock,
        latents: Latents,
    ) -> None:
        self._components = components
        self._exact = ExactEngine(components)
        self._others = others
        self._plan = plan
        self._report = report
        self._clock = clock
        cache_bytes = int(WorkerSettings.model_fields["adapter_cache_gb"].default * 1_000_000_000)
        self._renderer = Renderer(components, prompt_cache=4, adapter_cache_bytes=cache_bytes)
        self._now = "compiled" if components.compiled else "exact"  # the name of this project's engine, as it is now
        self._latents = latents
        self._flops: dict[int, int] = {}  # of a step, by size
        self._prompt, self._negative = (self._embeds(seed) for seed in (1, 2))

    def compile(self, name: str) -> None:
        """Compile the blocks for `compiled` or `fast`, if loading has not; each kind is compiled at its first call."""
        if not self._components.compiled:
            compile_blocks(self._components.transformer, exact=name != "fast")
        self._now = name

    def engine(self, name: str, *, step: bool, image: bool) -> None:
        """Measure an engine at every size."""
        engine = self._others.get(name, self._exact)
        drift: Row = {}
        for size in self._plan.sizes:
            first_s = self._clock.seconds(lambda: self._denoise(engine, size, 1))  # noqa: B023 - called at once
            if name == "fast" and not drift:
                drift["drift"] = self._renderer.swapper.fp8_error(partial(engine.predict, self._renderer.usual_call()))
            # The first step is that of the first size with compiling, where there is any.
            notes: Row = {"first_s": first_s, **drift}
            if step:
                self._step(name, engine, size, notes)
            if image:
                self._image(name, engine, size, notes)

    def _step(self, name: str, engine: Engine, size: int, notes: Row) -> None:
        until = time.perf_counter() + (_HEAT_S if self._clock.device.type == "cuda" else 0)
        while time.perf_counter() < until:
            self._denoise(engine, size, self._plan.repeat)
        self._clock.forget_peak()
        latents, times = self._denoise(engine, size, self._plan.repeat + 1)
        median_ms = statistics.median(times)
        self._report.add(
            _STEP,
            engine=name,
            size=size,
            median_ms=median_ms,
            **self._report.against(_STEP, size=size, engine=name, time=median_ms),
            peak_gb=self._clock.peak_gb(),
            n=len(times),
            **self._rate(name, engine, size, median_ms),
            **notes,
            **self._equality(_STEP, name, size, latents, steps=self._plan.repeat + 1),
        )

    def _rate(self, name: str, engine: Engine, size: int, median_ms: float) -> Row:
        """Return the rate of a step's products and attention, and its part of the ceiling if that was measured."""
        if size not in self._flops:
            with as_written(), FlopCounterMode(display=False) as counter:
                self._denoise(engine, size, 1)
            self._flops[size] = counter.get_total_flops()
        tflops = self._flops[size] / median_ms / 1e9
        ceilings = [row["tflops"] for row in self._report.rows if row["what"] == (FP8 if name == "fast" else BF16)]
        return {"tflops": tflops, "of_ceiling": tflops / ceilings[-1] if ceilings else None}

    def _image(self, name: str, engine: Engine, size: int, notes: Row) -> None:
        """Measure from noise to the bytes of a file; the prompt is encoded already."""
        engine.decode(self._denoise(engine, size, 1)[0])
        self._clock.forget_peak()
        done: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        for stage, call in (
            ("denoise", lambda: self._denoise(engine, size, self._plan.steps)[0]),
            ("decode", lambda: engine.decode(done["denoise"])),
            ("pixels", lambda: engine.image(done["decode"][0])),
            ("encode", lambda: image_file.encode(done["pixels"], "png", {"num_inference_steps": self._plan.steps})),
        ):
            seconds[stage] = self._clock.seconds(lambda: done.update({stage: call()}))  # noqa: B023 - called at once
        total = sum(seconds.values())
        self._report.add(
            _IMAGE,
            engine=name,
            size=size,
            seconds=total,
            **self._report.against(_IMAGE, size=size, engine=name, time=total),
            peak_gb=self._clock.peak_gb(),
            steps=self._plan.steps,
            **{f"{stage}_s": value for stage, value in seconds.items()},
            **notes,
            **self._equality(_IMAGE, name, size, done["denoise"], steps=self._plan.steps),
        )

    def switch(self, folder: Path) -> None:
        """Measure changes of adapters, on the caller's clock; each file is read once, at the first."""
        swapper, step_ms, size = self._renderer.swapper, self._step_ms(), self._plan.sizes[0]
        start, passes = self._start(size), 1 if self._components.distilled else 2
        a, b = (self._adapter(folder, name) for name in "AB")
        times: dict[str, list[float]] = {}
        drift = 0

        def step() -> None:
            self._denoise(self._exact, size, 1, start=start)

        def use(*adapters: tuple[AdapterRef, Path]) -> None:
            swapper.activate(adapters)

        def use_under_a_step(adapter: tuple[AdapterRef, Path]) -> None:
            swapper.activate([adapter], wait=False)
            step()
            swapper.wait()

        def use_under_two(adapter: tuple[AdapterRef, Path]) -> None:
            swapper.begin_next([adapter], passes=passes)
            step()
            swapper.abandon_passes()
            use_under_a_step(adapter)

        def measure(what: str, change: Callable[[], None]) -> None:
            nonlocal drift
            times.setdefault(what, []).append(self._clock.seconds(change))
            drift = max(drift, swapper.count_corrupted(), swapper.corrupted)

        alone_ms = 1000 * self._clock.median_s(step, self._plan.repeat)
        measure("switch base to A, the first", partial(use, a))
        for _ in range(self._plan.repeat):
            measure("switch A to B", partial(use, b))
            measure("switch B to A", partial(use, a))
            measure("switch A to base", use)
            measure("switch base to A", partial(use, a))
            for what, change in ((_UNDER_A_STEP, use_under_a_step), (_UNDER_TWO_STEPS, use_under_two)):
                measure(what, partial(change, b))
                measure(what, partial(change, a))
        use()
        clean = self._components.placement.clean
        for what, seconds in times.items():
            median_ms = statistics.median(seconds) * 1000
            under = {_UNDER_A_STEP: 1, _UNDER_TWO_STEPS: 2}.get(what)
            added: Row = {"added_ms": median_ms - under * alone_ms} if under else {}
            self._add(what, median_ms, step_ms, **added, n=len(seconds), clean=clean, drift=drift)

    def prompt(self) -> None:
        """Measure the encoding of 512 random tokens."""
        step_ms = self._step_ms()
        self._clock.forget_peak()
        median_s = self._clock.median_s(lambda: self._embeds(3), self._plan.repeat)
        place = self._components.placement.text_encoder
        self._add("prompt encode", median_s * 1000, step_ms, peak_gb=self._clock.peak_gb(), text_encoder=place)

    def together(self) -> None:
        """Measure steps of several images in one pass, and whether their latents are those of each alone."""
        for size in self._plan.sizes:
            steps = self._plan.repeat + 1
            alone = [self._denoise(self._exact, size, steps, seeds=(seed,)) for seed in _SEEDS]
            one_ms = statistics.median(time for _, times in alone for time in times)
            for count in (2, len(_SEEDS)):
                self._denoise(self._exact, size, 1, seeds=_SEEDS[:count])  # compiles, where that is needed
                latents, times = self._denoise(self._exact, size, steps, seeds=_SEEDS[:count])
                single = torch.cat([kept for kept, _ in alone[:count]])
                self._report.add(
                    f"together: {count} images a pass, per image",
                    engine=self._now,
                    size=size,
                    median_ms=statistics.median(times) / count,
                    ratio=statistics.median(times) / count / one_ms,
                    against="alone",
                    differing=int((latents != single).sum()),
                    of=latents.numel(),
                    after_steps=steps,
                )

    def batch(self, folder: Path) -> None:
        """Render images with two adapters in turn, each of a prompt of its own; as in a worker an image is encoded
        while the next renders, which is prepared while the one before does.

        That is the worst case: the queue hands out what needs no change first.
        """
        adapters = [self._adapter(folder, name) for name in "AB"]
        warm_up = BackgroundUploader()
        for adapter in adapters:
            self._render(adapter, 0, warm_up)
        warm_up.wait()
        step_ms, items = self._step_ms(), self._plan.items
        uploader, prefetcher = BackgroundUploader(), Prefetcher()
        self._clock.forget_peak()
        with self._clock.busy(self._components.transformer, self._components.autoencoder.decoder) as busy_s:
            began = time.perf_counter()
            for number in range(items):
                following = adapters[(number + 1) % 2]
                prepare = partial(self._renderer.prepare, self._spec(following, number + 1), [following[1]])
                self._render(adapters[number % 2], number, uploader, prepare=partial(prefetcher.submit, prepare))
            uploader.wait()
            wall_s = time.perf_counter() - began
            idle = 1 - busy_s() / wall_s
        prefetcher.wait()
        self._renderer.swapper.activate(())
        self._report.add(
            f"batch of {items}, two adapters in turn, per item",
            engine=self._now,
            size=self._plan.sizes[0],
            seconds=wall_s / items,
            ratio=wall_s / items / (self._plan.steps * step_ms / 1000),
            against=f"{self._plan.steps} steps",
            peak_gb=self._clock.peak_gb(),
            steps=self._plan.steps,
            idle_share=idle,
            drift=max(self._renderer.swapper.count_corrupted(), self._renderer.swapper.corrupted),
        )

    def _add(self, what: str, median_ms: float, step_ms: float, **more: Any) -> None:
        """Report a time beside that of one step of this project's engine."""
        self._report.add(
            what,
            engine=self._now,
            size=self._plan.sizes[0],
            median_ms=median_ms,
            ratio=median_ms / step_ms,
            against="one step",
            **more,
        )

    def _step_ms(self) -> float:
        """Return what a step of this project's engine takes at the first size, as it is now."""
        size = self._plan.sizes[0]
        for row in self._report.rows:
            if (row["what"], row.get("engine"), row.get("size")) == (_STEP, self._now, size):
                return float(row["median_ms"])
        self._denoise(self._exact, size, 1)
        return statistics.median(self._denoise(self._exact, size, self._plan.repeat + 1)[1])

    def _start(self, size: int, seeds: tuple[int, ...] = _SEEDS[:1]) -> Tensor:
        """Return noise on the device."""
        channels = self._components.transformer.config.in_channels
        dtype = self._components.dtype
        drawn = torch.cat([noise(seed, channels=channels, height=size, width=size, dtype=dtype) for seed in seeds])
        return drawn.to(self._components.device)

    def _denoise(
        self, engine: Engine, size: int, steps: int, *, seeds: tuple[int, ...] = _SEEDS[:1], start: Tensor | None = None
    ) -> tuple[Tensor, list[float]]:
        """Return latents, and the milliseconds of each step but the first: from the end of the one before it."""
        prompt, negative = (embeds.expand(len(seeds), -1, -1) for embeds in (self._prompt, self._negative))
        marks: list[Any] = []
        latents = engine.denoise(
            self._start(size, seeds) if start is None else start,
            Run(steps, _GUIDANCE, prompt, None if self._components.distilled else negative),
            on_step=lambda *_: marks.append(self._clock.mark()),
        )
        return latents, self._clock.between(marks)

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

    def _embeds(self, seed: int) -> Tensor:
        """Encode random tokens, (1, 512, width), as `worker.rendering.prompt_encoder` does a prompt's."""
        encoder: Any = self._components.text_encoder
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(encoder.config.vocab_size, (1, MAX_TOKENS), generator=generator).to(self._clock.device)
        return embed(encoder, ids, torch.ones_like(ids)).to(self._components.dtype)

    def _adapter(self, folder: Path, name: str) -> tuple[AdapterRef, Path]:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write_adapter(path, self._components)
        return adapter_ref(path, 1.0), path

    def _spec(self, adapter: tuple[AdapterRef, Path], seed: int) -> ItemSpec:
        size = self._plan.sizes[0]
        return ItemSpec(
            model=self._components.model,
            prompt=f"a red fox, {seed}",
            neg="a cat",
            width=size,
            height=size,
            requested_width=size,
            requested_height=size,
            seed=seed,
            num_inference_steps=self._plan.steps,
            guidance_scale=_GUIDANCE,
            adapters=(adapter[0],),
            output_format="png",
            engine="fast" if self._now == "fast" else "exact",
        )

    def _render(
        self,
        adapter: tuple[AdapterRef, Path],
        seed: int,
        uploader: BackgroundUploader,
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        spec = self._spec(adapter, seed)

        def on_progress(progress: Progress) -> None:
            if (progress.stage, progress.step) == ("denoise", STEP_TO_PREPARE):
                prepare()

        rendered = self._renderer.render(spec, [adapter[1]], on_progress=on_progress)

        def encode() -> None:
            image_file.encode(rendered.image, spec.output_format, spec.model_dump())

        uploader.submit(encode)
