"""Run the measurements and print them: `python -m benchmarks.gpu --full`, or `--tiny --device cpu` to try them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.models import Checkpoint
from benchmarks.gpu.parts import Latents, Parts, Plan
from benchmarks.gpu.report import Report
from shared.errors import CheckpointError
from shared.settings import Settings
from worker.device import pick_device
from worker.model.components import Components
from worker.rendering.engine import Engine, package_versions
from worker.rendering.toolkit_checkout import Toolkit, load_toolkit
from worker.rendering.toolkit_engine import ToolkitEngine
from worker.verify.diffusers_pipeline import DiffusersEngine


class Part(StrEnum):
    """What can be measured by itself."""

    CEILINGS = "ceilings"
    COLD = "cold"
    STEPS = "steps"
    IMAGE = "image"
    SWITCH = "switch"
    PROMPT = "prompt"
    TOGETHER = "together"
    BATCH = "batch"


class EngineName(StrEnum):
    """In the order in which they run: the baselines first, and nothing eager of ours after the compilation."""

    AI_TOOLKIT = "ai-toolkit"
    DIFFUSERS = "diffusers"
    EXACT = "exact"
    COMPILED = "compiled"
    FAST = "fast"


_ENGINES = {"bf16": [name for name in EngineName if name != "fast"], "fp8": [EngineName.FAST]}


def main(
    tiny: Annotated[bool, typer.Option("--tiny/--full", help="A small model of the same architecture, or the real.")],
    model: Annotated[
        Literal["flux2", "flux2_klein_4b", "flux2_klein_9b"], typer.Option(help="Which FLUX.2 to build.")
    ] = "flux2",
    device: Annotated[str | None, typer.Option(help="As torch names it. [default: cuda where there is one]")] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(min=16, help="Width and height in pixels; may be repeated. [default: 1024, tiny 64]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of an image.")] = 25,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many times.")] = 10,
    items: Annotated[int, typer.Option(min=2, help="Images of the batch.")] = 20,
    only: Annotated[list[Part] | None, typer.Option(help="Measure this part; may be repeated.")] = None,
    engine: Annotated[list[EngineName] | None, typer.Option(help="Measure this engine; may be repeated.")] = None,
    text_encoder_place: Annotated[
        Literal["resident", "streamed"] | None, typer.Option(help="Instead of what fits.")
    ] = None,
    clean_weights: Annotated[
        Literal["device", "host", "file"] | None, typer.Option(help="Instead of what fits.")
    ] = None,
    memory_gb: Annotated[float | None, typer.Option(min=1, help="Place it as on a card with so much free.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as they are made.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the JSON lines to this file, as they are made.")] = None,
) -> None:
    """Build a FLUX.2 with random weights by the product's loader, and measure what it costs on this device."""
    parts, engines, toolkit = set(only or Part), list(engine or EngineName), _toolkit(engine)
    clock = Clock(pick_device(device or "auto"))
    report = Report(device=clock.name, as_json=as_json, out=out)
    plan = Plan(tuple(size or [64 if tiny else 1024]), steps, repeat, items)
    with torch.no_grad(), ExitStack() as held:
        if Part.CEILINGS in parts:
            measure_ceilings(report, clock, small=tiny or clock.device.type == "cpu")
            torch.cuda.empty_cache()  # else the placement would take its memory for lost
        if parts == {Part.CEILINGS}:
            report.print_table()
            return
        narrow = not parts & {Part.COLD, Part.PROMPT, Part.BATCH}
        checkpoint = held.enter_context(Checkpoint(model, tiny=tiny, device=clock.device, narrow=narrow))
        latents: Latents = {}
        for precision, possible in _ENGINES.items():
            names = [name for name in possible if name in engines]
            if not names:
                continue
            clock.forget_peak()
            try:
                components = checkpoint.load(
                    precision,
                    text_encoder_place=text_encoder_place,
                    clean_weights=clean_weights,
                    memory_gb=memory_gb,
                    compile=False if EngineName.EXACT in names else None,  # blocks that are compiled stay so
                )
            except CheckpointError as error:
                raise typer.BadParameter(str(error)) from error
            others = _others(components, toolkit, names)
            measured = Parts(components, others, plan=plan, report=report, clock=clock, latents=latents)
            _report_loaded(components, report, clock, cold=Part.COLD in parts)
            _measure(measured, parts, names, others, folder=_folder(held))
            del components, others, measured
            _forget()
    report.print_table()


def _folder(held: ExitStack) -> Path:
    return Path(held.enter_context(tempfile.TemporaryDirectory(prefix="flux2-bench-")))


def _forget() -> None:
    """Give the memory of a model back, whose hooks make circles."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _toolkit(chosen: Sequence[EngineName] | None) -> Toolkit | None:
    """Return AI Toolkit's classes if they are wanted and there."""
    root = Settings().ai_toolkit_path
    if chosen and EngineName.AI_TOOLKIT not in chosen:
        return None
    if chosen and root is None:
        raise typer.BadParameter("AI_TOOLKIT_PATH names no checkout", param_hint="--engine")
    try:
        return load_toolkit(root) if root else None
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="AI_TOOLKIT_PATH") from error


def _report_loaded(components: Components, report: Report, clock: Clock, *, cold: bool) -> None:
    """Report where the model lies and, for the part `cold`, how long it took to get there from the page cache."""
    transformer_b = sum(weight.numel() for weight in components.transformer.parameters()) / 1e9
    named = {"model": components.model, "precision": components.precision.name}
    report.add(
        "placement",
        **named,
        transformer_billions=transformer_b,
        placement=str(components.placement),
        **package_versions(),
    )
    if not cold:
        return
    read = {
        "transformer": sum(2 * weight.numel() for weight in components.transformer.parameters()),
        "autoencoder": sum(2 * weight.numel() for weight in components.autoencoder.parameters()),
    }
    if components.placement.text_encoder == "resident":  # else its layers are read with each prompt
        read["text encoder"] = sum(weight.nbytes for weight in components.text_encoder.parameters())
    for part, seconds in components.load_s.items():
        rate: dict[str, Any] = {}
        if part in read:
            rate = {"gb": read[part] / 1e9, "gb_per_s": read[part] / 1e9 / seconds}
        report.add(f"cold start: {part}", **named, seconds=seconds, **rate)
    weights_s = sum(seconds for part, seconds in components.load_s.items() if part != "compiler")
    report.add("cold start: weights", **named, seconds=weights_s, peak_gb=clock.peak_gb())


def _others(components: Components, toolkit: Toolkit | None, chosen: Collection[EngineName]) -> dict[str, Engine]:
    """Make the engines that are not ours, over our weights."""
    others: dict[str, Engine] = {}
    if toolkit is not None and EngineName.AI_TOOLKIT in chosen:
        others[EngineName.AI_TOOLKIT] = ToolkitEngine.from_components(components, toolkit)
    if EngineName.DIFFUSERS in chosen:
        others[EngineName.DIFFUSERS] = DiffusersEngine(components)
    return others


def _measure(
    measured: Parts, parts: set[Part], engines: Sequence[EngineName], others: dict[str, Engine], *, folder: Path
) -> None:
    """Run the parts in an order in which each finds the step that it is compared with."""
    step, image = Part.STEPS in parts, Part.IMAGE in parts
    for name in engines:
        if name in (EngineName.COMPILED, EngineName.FAST):
            measured.compile(name)
        if (step or image) and (name in others or name not in (EngineName.AI_TOOLKIT, EngineName.DIFFUSERS)):
            measured.engine(name, step=step, image=image)
    if Part.SWITCH in parts:
        measured.switch(folder)
    if Part.PROMPT in parts:
        measured.prompt()
    if Part.TOGETHER in parts:
        measured.together()
    if Part.BATCH in parts:
        measured.batch(folder)


if __name__ == "__main__":
    typer.run(main)
