"""Measure how far images with skipped steps are from images of all steps, and whether that can be known beforehand.

A skipped step replaces the transformer's pass by a guess from earlier passes. The embedded demonstration model
renders each prompt with 25 full steps, with two of diffusers' caches, and with fewer steps that take as many passes as
the caches. Images at the start, as a worker could render them to state an error, are compared with later images: of
other prompts, of another size, with an adapter.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers.hooks import MagCacheConfig, TaylorSeerCacheConfig
from PIL import Image
from torch import Tensor

from flux2_client.similarity import compare_images
from shared.job import AdapterRef, ItemSpec
from shared.settings import ModelSettings
from tools.train_tiny.data import random_picture
from worker.lora.hot_swap import AdapterSwapper
from worker.model.demo_model import STYLES, write_tiny_adapter, write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.engine import DenoisingInputs
from worker.rendering.item_inputs import InputBuilder
from worker.rendering.native_engine import native_engine

STEPS = 25
SIZES = (128, 192)
#: Number of images at the start.
START = 8
#: An image's error is predicted if it is at most this many times larger or smaller than the median at the start.
TOLERANCE = 1.5
_GUIDANCE = 4.0


@dataclass(frozen=True)
class Skipping:
    """The settings of both caches that lead to the same number of passes.

    Attributes:
        threshold: MagCache skips steps until its estimate of the accumulated error exceeds this.
        warm_up: number of first steps that TaylorSeer computes.
        interval: after them, TaylorSeer computes each step whose number this divides.
    """

    threshold: float
    warm_up: int
    interval: int


#: By the number of passes for 25 steps.
SKIPPING = {19: Skipping(0.054, 13, 2), 15: Skipping(0.124, 5, 2), 11: Skipping(0.288, 4, 3)}


class Group(StrEnum):
    """How an image differs from those at the start."""

    START = "at the start"
    PROMPT = "other prompts and seeds"
    SIZE = "another size"
    ADAPTER = "an adapter"


@dataclass(frozen=True)
class Case:
    """One image; `adapter` is the name of an embedded adapter, or empty."""

    group: Group
    prompt: str
    seed: int
    size: int
    adapter: str = ""


@dataclass(frozen=True)
class Difference:
    """How far an image is from that of all steps.

    Attributes:
        passes: number of passes that computed every block.
        error: length of the difference of the final latents, divided by the length of those of all steps.
        psnr_db: of the decoded images; infinite for equal images.
    """

    group: Group
    passes: int
    error: float
    psnr_db: float


#: By the name of the way to save passes.
Differences = Mapping[str, Sequence[Difference]]


def main(
    prompts: Annotated[int, typer.Option(min=START, help="Number of prompts.")] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds for each prompt and size.")] = 2,
    passes: Annotated[int, typer.Option(help=f"Passes for 25 steps: {', '.join(map(str, SKIPPING))}.")] = 15,
) -> None:
    """Render every case in all ways, and print the differences."""
    if passes not in SKIPPING:
        raise typer.BadParameter(f"{passes} passes are not planned; choose {', '.join(map(str, SKIPPING))}")
    with open_model() as model:
        found = measure(model, list(cases(prompts, seeds)), passes=passes)
    for line in (*differences_table(found), "", *prediction_table(found)):
        typer.echo(line)


def cases(prompts: int, seeds: int) -> Iterator[Case]:
    """Yield random prompts of the kinds that the model was trained on, always the same, with each seed and size."""
    captions = [random_picture(random.Random(f"step skipping {number}")).caption for number in range(prompts)]
    for seed in range(1, seeds + 1):
        for number, caption in enumerate(captions):
            is_first = seed == 1 and number < START
            yield Case(Group.START if is_first else Group.PROMPT, caption, seed, SIZES[0])
            yield Case(Group.SIZE, caption, seed, SIZES[1])
    for style in STYLES:
        for caption in captions[:START]:
            yield Case(Group.ADAPTER, caption, 1, SIZES[0], style)


class Model:
    """The embedded demonstration model; it counts its full passes."""

    def __init__(self, folder: Path) -> None:
        write_tiny_checkpoint(folder)
        settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
        components = load_components(settings, device=torch.device("cpu"), hf_token=None)
        self.transformer = components.transformer
        self.engine = native_engine(components)
        self.passes = 0
        self._inputs = InputBuilder(components, prompt_cache=64)
        self._swapper = AdapterSwapper(components)
        self._adapters = {style: _write_adapter(folder, style) for style in STYLES}
        # Inside the last block: the block itself is also called in skipped steps.
        self.transformer.single_transformer_blocks[-1].attn.to_out.register_forward_hook(self._count)

    def render(self, case: Case, *, steps: int = STEPS, skipping: Any = None) -> Tensor:
        """Return the final latents; `skipping` is the configuration of one of diffusers' caches."""
        spec = ItemSpec(
            model="flux2", prompt=case.prompt, neg="", width=case.size, height=case.size, requested_width=case.size,
            requested_height=case.size, seed=case.seed, num_inference_steps=steps, guidance_scale=_GUIDANCE,
            adapters=(), output_format="png",
        )  # fmt: skip
        inputs = self._inputs.build(spec)
        self._swapper.activate([self._adapters[case.adapter]] if case.adapter else [])
        self.passes = 0
        with self._skipping(skipping):
            run = DenoisingInputs(steps, _GUIDANCE, inputs.prompt_embeds)
            return self.engine.denoise(inputs.start, run, on_step=lambda *_: None)

    def decode(self, latents: Tensor) -> Image.Image:
        """Return the image of final latents."""
        return self.engine.image(self.engine.decode(latents)[0])

    @contextmanager
    def _skipping(self, config: Any) -> Iterator[None]:
        if config is None:
            yield
            return
        # For each image anew, because a cache keeps what it has stored until it is removed.
        self.transformer.enable_cache(config)
        try:
            with self.transformer.cache_context("image"):
                yield
        finally:
            self.transformer.disable_cache()

    def _count(self, *_: Any) -> None:
        self.passes += 1


@contextmanager
def open_model() -> Iterator[Model]:
    """Load the model, without gradients inside the `with` block."""
    with tempfile.TemporaryDirectory(prefix="flux2-skipping-") as folder, torch.no_grad():
        yield Model(Path(folder))


def measure(model: Model, planned: Iterable[Case], *, passes: int) -> Differences:
    """Render the cases with all steps and in each way that takes about `passes` passes."""
    ways = _ways(model, passes)
    found: dict[str, list[Difference]] = {name: [] for name in ways}
    for case in planned:
        whole = model.render(case)
        image = model.decode(whole)
        for name, render in ways.items():
            latents = render(case)
            error = float((latents - whole).norm() / whole.norm())
            psnr_db = compare_images(model.decode(latents), image).psnr_db
            found[name].append(Difference(case.group, model.passes, error, psnr_db))
    return found


def _ways(model: Model, passes: int) -> dict[str, Callable[[Case], Tensor]]:
    chosen = SKIPPING[passes]
    ratios = cache(partial(_magnitude_ratios, model))

    def magcache(case: Case) -> Tensor:
        config = MagCacheConfig(
            threshold=chosen.threshold, num_inference_steps=STEPS, mag_ratios=torch.tensor(ratios(case.size))
        )
        return model.render(case, skipping=config)

    def taylorseer(case: Case) -> Tensor:
        config = TaylorSeerCacheConfig(
            cache_interval=chosen.interval,
            disable_cache_before_step=chosen.warm_up,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,  # guess the velocity itself; the other mode computes parts of each block
        )
        return model.render(case, skipping=config)

    def fewer_steps(case: Case) -> Tensor:
        return model.render(case, steps=passes)

    return {"fewer steps": fewer_steps, "MagCache": magcache, "TaylorSeer": taylorseer}


def _magnitude_ratios(model: Model, size: int) -> list[float]:
    """Calibrate MagCache on an image that is not measured."""
    printed = io.StringIO()
    # Diffusers offers the ratios nowhere else.
    with redirect_stdout(printed):
        case = Case(Group.START, "a photograph", 0, size)
        model.render(case, skipping=MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    ratios: list[float] = json.loads(printed.getvalue().strip().splitlines()[-1])
    return ratios


def differences_table(found: Differences) -> Iterator[str]:
    """Yield lines with the spread over all images."""
    yield "| way | passes | error: least | median | p95 | largest | largest / median | PSNR: least | median |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, differences in found.items():
        errors = sorted(one.error for one in differences)
        psnr_db = [one.psnr_db for one in differences]
        median, p95 = statistics.median(errors), errors[int(0.95 * len(errors))]
        passes = "-".join(map(str, sorted({one.passes for one in differences})))
        spread = " | ".join(f"{value:.4f}" for value in (errors[0], median, p95, errors[-1]))
        decibels = " | ".join(f"{value:.1f} dB" for value in (min(psnr_db), statistics.median(psnr_db)))
        yield f"| {name} | {passes} | {spread} | {errors[-1] / median:.2f} | {decibels} |"


def prediction_table(found: Differences) -> Iterator[str]:
    """Yield lines that compare the images at the start with later ones."""
    yield "| way | later images | median / median at the start | not predicted | above the largest at the start |"
    yield "|---|---|---|---|---|"
    for name, differences in found.items():
        first = [one.error for one in differences if one.group is Group.START]
        stated, bound = statistics.median(first), max(first)
        for group in (Group.PROMPT, Group.SIZE, Group.ADAPTER):
            errors = [one.error for one in differences if one.group is group]
            missed = sum(not stated / TOLERANCE <= error <= stated * TOLERANCE for error in errors)
            above = sum(error > bound for error in errors)
            ratio = statistics.median(errors) / stated
            yield f"| {name} | {group} | {ratio:.2f} | {missed} of {len(errors)} | {above} of {len(errors)} |"


def _write_adapter(folder: Path, name: str) -> tuple[AdapterRef, Path]:
    path = folder / f"{name}.safetensors"
    write_tiny_adapter(path, name)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return AdapterRef(path=path.name, sha256=sha256, size_bytes=len(content), multiplier=1.0), path


if __name__ == "__main__":
    typer.run(main)
