"""Run the measurements and print them: `python -m benchmarks.gpu --full`, or `--tiny --device cpu` to try them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.models import Built, build
from benchmarks.gpu.parts import Parts, Plan
from benchmarks.gpu.report import Report
from shared.errors import CheckpointError
from shared.settings import Settings
from worker.engines.checkout import Toolkit, load_toolkit
from worker.engines.engine import Engine, package_versions
from worker.engines.toolkit import over
from worker.pipeline.components import Components
from worker.verify.stock import Stock

# Reading files is no part of it.
_HOW = "built from random weights"


class Part(StrEnum):
    """What can be measured by itself."""

    CEILINGS = "ceilings"
    COLD = "cold"
    STEPS = "steps"
    IMAGE = "image"
    SWITCH = "switch"
    PROMPT = "prompt"
    BATCH = "batch"


class EngineName(StrEnum):
    """In the order in which they run: the baselines first, and nothing eager of ours after the compilation."""

    AI_TOOLKIT = "ai-toolkit"
    DIFFUSERS = "diffusers"
    EXACT = "exact"
    COMPILED = "compiled"


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
    clean_weights: Annotated[Literal["device", "host"] | None, typer.Option(help="Instead of what fits.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as they are made.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the JSON lines to this file, as they are made.")] = None,
) -> None:
    """Build a FLUX.2 with random weights by the product's loader, and measure what it costs on this device."""
    parts, toolkit = set(only or Part), _toolkit(engine)
    clock = Clock(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    report = Report(device=clock.name, as_json=as_json, out=out)
    plan = Plan(tuple(size or [64 if tiny else 1024]), steps, repeat, items)
    with torch.no_grad():
        if Part.CEILINGS in parts:
            measure_ceilings(report, clock, small=tiny or clock.device.type == "cpu")
            torch.cuda.empty_cache()  # else the placement would take its memory for lost
        if parts != {Part.CEILINGS}:
            clock.forget_peak()
            try:
                built = build(
                    model, tiny=tiny, device=clock.device, text_encoder=text_encoder_place, clean=clean_weights
                )
            except CheckpointError as error:
                raise typer.BadParameter(str(error)) from error
            _report_built(built, report, clock, cold=Part.COLD in parts)
            others = _others(built.components, toolkit, engine)
            measured = Parts(built.components, others, plan=plan, report=report, clock=clock)
            _measure(measured, parts, [name for name in EngineName if not engine or name in engine], others)
    report.print_table()


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


def _report_built(built: Built, report: Report, clock: Clock, *, cold: bool) -> None:
    """Report where the model lies and, for the part `cold`, how long building took."""
    components = built.components
    transformer_b = sum(weight.numel() for weight in components.transformer.parameters()) / 1e9
    report.add(
        "placement",
        model=components.model,
        transformer_billions=transformer_b,
        placement=str(components.placement),
        **package_versions(),
    )
    if not cold:
        return
    for part, seconds in built.seconds.items():
        report.add(f"cold start: {part}", seconds=seconds, gb=built.sizes[part] / 1e9, how=_HOW)
    report.add("cold start", seconds=sum(built.seconds.values()), peak_gb=clock.peak_gb(), how=_HOW)


def _others(components: Components, toolkit: Toolkit | None, chosen: Sequence[EngineName] | None) -> dict[str, Engine]:
    """Make the engines that are not ours, over our weights."""
    others: dict[str, Engine] = {}
    if toolkit is not None:
        others[EngineName.AI_TOOLKIT] = over(components, toolkit)
    if not chosen or EngineName.DIFFUSERS in chosen:
        others[EngineName.DIFFUSERS] = Stock(components)
    return others


def _measure(measured: Parts, parts: set[Part], engines: Sequence[EngineName], others: dict[str, Engine]) -> None:
    """Run the parts in an order in which each finds the step that it is compared with."""
    step, image = Part.STEPS in parts, Part.IMAGE in parts
    for name in engines:
        if name is EngineName.COMPILED:
            measured.compile()
        if (step or image) and (name in others or name in (EngineName.EXACT, EngineName.COMPILED)):
            measured.engine(name, step=step, image=image)
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as folder:
        if Part.SWITCH in parts:
            measured.switch(Path(folder))
        if Part.PROMPT in parts:
            measured.prompt()
        if Part.BATCH in parts:
            measured.batch(Path(folder))


if __name__ == "__main__":
    typer.run(main)
