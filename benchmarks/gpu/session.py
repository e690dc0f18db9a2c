"""One loaded model with everything that its measurements share: engines, sizes, clock, report, prompts and adapters.

The engines run over the same weights, one after another. `compiled` is `exact` with its blocks compiled, and compiling
cannot be undone: everything that is measured of this project's engine afterwards is measured compiled. `fast` runs over
its own weights, in float8.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.models import write_adapter
from benchmarks.gpu.references import RandomReferences
from benchmarks.gpu.report import Report
from benchmarks.gpu.sampling import GUIDANCE, Sampling
from shared.job import AdapterRef, ItemSpec
from shared.prompt import MAX_TOKENS
from shared.settings import WorkerSettings
from worker.model.compile import compile_blocks
from worker.model.components import Components
from worker.rendering.engine import DenoisingInputs, Engine
from worker.rendering.latents import noise
from worker.rendering.native_engine import ExactEngine
from worker.rendering.prompt_encoder import embed
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

#: Name of the rows that hold the time of a denoising step.
STEP = "step"
SEEDS = (42, 43, 44, 45)


@dataclass(frozen=True)
class Plan:
    """Sizes and counts of a benchmark run.

    Attributes:
        sizes: width and height of the images, in pixels; only steps and images are measured at more than the first.
        steps: denoising steps of an image.
        repeat: number of repetitions behind each median.
        items: images of the batch.
        references: numbers of reference images in the steps of the part `references`.
        reference_side: their width and height, in pixels.
    """

    sizes: tuple[int, ...]
    steps: int
    repeat: int
    items: int
    references: tuple[int, ...]
    reference_side: int


class Session:
    """One model under measurement.

    Args:
        others: engines other than this project's, over the weights of `components`.

    Attributes:
        exact: this project's engine.
        engine_name: the name under which this project's engine is reported now; `compile` changes it.
        renderer: a worker's renderer over the same weights, with the default adapter cache.
        references: reference images of this model.
    """

    def __init__(
        self, components: Components, others: Mapping[str, Engine], *, plan: Plan, report: Report, clock: Clock
    ) -> None:
        self.components = components
        self.exact = ExactEngine(components)
        self.plan = plan
        self.report = report
        self.clock = clock
        self.engine_name = "compiled" if components.compiled else "exact"
        cache_bytes = int(WorkerSettings.model_fields["adapter_cache_gb"].default * 1_000_000_000)
        self.renderer = Renderer(components, prompt_cache=4, adapter_cache_bytes=cache_bytes)
        self._others = others
        self.references = RandomReferences(components, plan.reference_side)
        self._prompt, self._negative = (self.encode_random_prompt(seed) for seed in (1, 2))

    def engine(self, name: str) -> Engine:
        """Return an engine by its name in the report."""
        return self._others.get(name, self.exact)

    def compile(self, name: str) -> None:
        """Mark this project's engine as `compiled` or `fast`, and compile its blocks unless loading has done so.

        The first call of each block does the compiling.
        """
        if not self.components.compiled:
            compile_blocks(self.components.transformer, exact=name != "fast")
        self.engine_name = name

    def denoise(
        self,
        engine: Engine,
        size: int,
        steps: int,
        *,
        seeds: tuple[int, ...] = SEEDS[:1],
        start: Tensor | None = None,
        guidance_scale: float = GUIDANCE,
        sigmas: tuple[float, ...] = (),
        references: int = 0,
    ) -> tuple[Tensor, list[float]]:
        """Denoise one image for each seed, all in one pass, from `start` or from drawn noise.

        Args:
            guidance_scale: up to 1, a step has one pass.
            sigmas: see `DenoisingInputs`.
            references: number of reference images.

        Returns:
            Latents, and the milliseconds of each step after the first, from the end of the step before it.
        """
        prompt, negative = (embeds.expand(len(seeds), -1, -1) for embeds in (self._prompt, self._negative))
        marks: list[Any] = []
        latents = engine.denoise(
            self.starting_noise(size, seeds) if start is None else start,
            DenoisingInputs(
                steps,
                guidance_scale,
                prompt,
                None if self.components.is_distilled or guidance_scale <= 1 else negative,
                self.references.get(references, files_only=engine.encodes_references) if references else None,
                sigmas,
            ),
            on_step=lambda *_: marks.append(self.clock.mark()),
        )
        return latents, self.clock.between(marks)

    def sample(self, engine: Engine, size: int, sampling: Sampling) -> Tensor:
        """Return the latents of one image."""
        _, steps, guidance_scale, sigmas = sampling
        return self.denoise(engine, size, steps, guidance_scale=guidance_scale, sigmas=sigmas)[0]

    def step_ms(self) -> float:
        """Return the median time of a step of this project's engine at the first size, measured now if not before."""
        size = self.plan.sizes[0]
        for row in self.report.rows:
            if (row["what"], row.get("engine"), row.get("size")) == (STEP, self.engine_name, size):
                return float(row["median_ms"])
        self.denoise(self.exact, size, 1)
        return statistics.median(self.denoise(self.exact, size, self.plan.repeat + 1)[1])

    def add_row(self, what: str, median_ms: float, *, step_ms: float, **more: Any) -> None:
        """Report a time, and its ratio to one step of this project's engine."""
        self.report.add(
            what,
            engine=self.engine_name,
            size=self.plan.sizes[0],
            median_ms=median_ms,
            ratio=median_ms / step_ms,
            against="one step",
            **more,
        )

    def starting_noise(self, size: int, seeds: tuple[int, ...] = SEEDS[:1]) -> Tensor:
        """Return the noise of these seeds on the device, (seeds, channels, rows, columns)."""
        channels = self.components.transformer.config.in_channels
        dtype = self.components.dtype
        drawn = torch.cat([noise(seed, channels=channels, height=size, width=size, dtype=dtype) for seed in seeds])
        return drawn.to(self.components.device)

    def encode_random_prompt(self, seed: int) -> Tensor:
        """Encode 512 random tokens, (1, 512, width), as `worker.rendering.prompt_encoder` encodes a prompt's."""
        encoder: Any = self.components.text_encoder
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(encoder.config.vocab_size, (1, MAX_TOKENS), generator=generator).to(self.clock.device)
        return embed(encoder, ids, torch.ones_like(ids)).to(self.components.dtype)

    def adapter(self, folder: Path, name: str) -> tuple[AdapterRef, Path]:
        """Return a random LoRA at multiplier 1, written to `folder` on the first call for its name."""
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write_adapter(path, self.components)
        return adapter_ref(path, 1.0), path

    def item(self, adapter: tuple[AdapterRef, Path], seed: int) -> ItemSpec:
        """Return a queue item with this adapter; each seed has its own prompt."""
        size = self.plan.sizes[0]
        return ItemSpec(
            model=self.components.model,
            prompt=f"a red fox, {seed}",
            neg="a cat",
            width=size,
            height=size,
            requested_width=size,
            requested_height=size,
            seed=seed,
            num_inference_steps=self.plan.steps,
            guidance_scale=GUIDANCE,
            adapters=(adapter[0],),
            output_format="png",
            engine="fast" if self.engine_name == "fast" else "exact",
        )
