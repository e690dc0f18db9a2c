"""Run the measurements and print them: `python -m benchmarks.gpu --full`, or `--tiny --device cpu` for a trial run."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer

from benchmarks.gpu.adapter_swaps import measure_swaps
from benchmarks.gpu.batch import measure_batch
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.image_times import ImageTimes
from benchmarks.gpu.joint_passes import measure_joint_passes
from benchmarks.gpu.latents_comparison import LatentsComparison
from benchmarks.gpu.models import Checkpoint
from benchmarks.gpu.parallel import measure_parallel, parallel_devices
from benchmarks.gpu.prompt_encoding import measure_prompt
from benchmarks.gpu.report import BASELINES, Report, Row
from benchmarks.gpu.session import Plan, Session
from benchmarks.gpu.step_times import StepTimes
from shared.errors import CheckpointError
from shared.references import MAX_REFERENCES
from shared.settings import Settings
from worker.device import pick_device
from worker.model.components import Components
from worker.model.fp8 import attends_in_float8, set_float8_attention
from worker.rendering.engine import Engine, package_versions
from worker.rendering.toolkit_checkout import Toolkit, load_toolkit
from worker.rendering.toolkit_engine import ToolkitEngine
from worker.verify.diffusers_pipeline import DiffusersEngine


class Part(StrEnum):
    """The measurements that `--only` selects."""

    CEILINGS = "ceilings"
    COLD = "cold"
    STEPS = "steps"
    REFERENCES = "references"
    IMAGE = "image"
    SWITCH = "switch"
    PROMPT = "prompt"
    TOGETHER = "together"
    BATCH = "batch"
    FEW_STEPS = "few-steps"
    PARALLEL = "parallel"


class EngineName(StrEnum):
    """The engines in the order in which they run.

    The baselines come first, and `exact` comes before `compiled` because compiling cannot be undone.
    """

    AI_TOOLKIT = "ai-toolkit"
    DIFFUSERS = "diffusers"
    EXACT = "exact"
    COMPILED = "compiled"
    FAST = "fast"


_ENGINES = {"bf16": [name for name in EngineName if name != "fast"], "fp8": [EngineName.FAST]}


def main(
    tiny: Annotated[
        bool, typer.Option("--tiny/--full", help="A small model of the same architecture, or the full size.")
    ],
    model: Annotated[
        Literal["flux2", "flux2_klein_4b", "flux2_klein_9b"], typer.Option(help="The FLUX.2 model to build.")
    ] = "flux2",
    device: Annotated[str | None, typer.Option(help="Device as torch names it. Default: cuda if available.")] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(min=16, help="Width and height in pixels; may be repeated. Default: 1024, or 64 with --tiny."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of an image.")] = 25,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions behind each median.")] = 10,
    items: Annotated[int, typer.Option(min=2, help="Images in the batch.")] = 20,
    references: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=MAX_REFERENCES,
            help="Reference images of 1024x1024, or 128x128 with --tiny, in a step of the part `references`; "
            "may be repeated. Default: one, and three.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=2, help="Devices that render an image together. Default: all GPUs, at most 8; none on a CPU."),
    ] = None,
    only: Annotated[list[Part] | None, typer.Option(help="Measure this part; may be repeated.")] = None,
    engine: Annotated[list[EngineName] | None, typer.Option(help="Measure this engine; may be repeated.")] = None,
    text_encoder_place: Annotated[
        Literal["resident", "streamed"] | None,
        typer.Option(help="Where to put the text encoder. Default: wherever it fits."),
    ] = None,
    clean_weights: Annotated[
        Literal["device", "host", "file"] | None,
        typer.Option(help="Where to restore base weights from. Default: by free memory."),
    ] = None,
    attention: Annotated[
        Literal["bf16", "fp8"] | None, typer.Option(help="Precision of the attention of `fast`. Default: a worker's.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=1, help="Place the model as on a card with this much free memory.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each row as a line of JSON when it is measured.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Append each row to this file when it is measured.")] = None,
) -> None:
    """Write a FLUX.2 checkpoint with random weights, load it as a worker does, and measure it on this device."""
    clock = Clock(pick_device(device or "auto"))
    report = Report(device=clock.name, model=model, tiny=tiny, as_json=as_json, out=out)
    sizes, side = tuple(size or [64 if tiny else 1024]), 128 if tiny else 1024
    plan = Plan(sizes, steps, repeat, items, tuple(references or (1, MAX_REFERENCES)), side)
    for option, value, selection, chosen, needed in (
        ("--references", references, "--only", only, Part.REFERENCES),
        ("--devices", devices, "--only", only, Part.PARALLEL),
        ("--attention", attention, "--engine", engine, EngineName.FAST),
    ):
        if value and chosen and needed not in chosen:
            raise typer.BadParameter(f"{option} needs {selection} {needed}", param_hint=option)
    together = parallel_devices(clock.device, devices)
    run = _Run(set(only or Part), list(engine or EngineName), _toolkit(engine), plan, report, clock, together)
    settings = {
        "text_encoder_place": text_encoder_place,
        "clean_weights": clean_weights,
        "memory_gb": memory_gb,
        "attention": attention,
    }
    _measure(run, model, tiny=tiny, settings=settings)
    report.print_table()


class _Run(NamedTuple):
    """The measurements of one call of this program, and the destination of their results.

    Attributes:
        devices: those that render together, this process' first; one if the part `parallel` is left out.
    """

    parts: set[Part]
    engines: list[EngineName]
    toolkit: Toolkit | None
    plan: Plan
    report: Report
    clock: Clock
    devices: Sequence[torch.device]


def _measure(run: _Run, model: str, *, tiny: bool, settings: Mapping[str, Any]) -> None:
    """Measure the device, and then the model in each precision that a chosen engine has.

    Args:
        settings: for `Checkpoint.load`.
    """
    with torch.no_grad(), ExitStack() as stack:
        if Part.CEILINGS in run.parts:
            measure_ceilings(run.report, run.clock, small=tiny or run.clock.device.type == "cpu")
            torch.cuda.empty_cache()  # otherwise the placement would count this memory as occupied
        if run.parts == {Part.CEILINGS}:
            return
        narrow = not run.parts & {Part.COLD, Part.PROMPT, Part.BATCH}
        checkpoint = stack.enter_context(Checkpoint(model, tiny=tiny, device=run.clock.device, narrow=narrow))
        comparison = LatentsComparison()
        chosen = {
            precision: names
            for precision, possible in _ENGINES.items()
            if (names := [name for name in possible if name in run.engines])
        }
        # A process cannot lead two groups of GPUs; see `worker.model.device_group`.
        apart = len(chosen) > 1 and Part.PARALLEL in run.parts and len(run.devices) > 1
        for precision, names in chosen.items():
            model_run = _ModelRun(precision, names, settings, comparison)
            if apart:
                comparison = _measure_in_new_process(run, checkpoint, model_run)
            else:
                _measure_precision(run, checkpoint, model_run)
                _free_memory()


class _ModelRun(NamedTuple):
    """The measurements of the model in one precision.

    Attributes:
        names: of engines that run in this precision.
        settings: for `Checkpoint.load`.
        comparison: with the engines that were measured in other precisions.
    """

    precision: str
    names: Sequence[EngineName]
    settings: Mapping[str, Any]
    comparison: LatentsComparison


def _measure_in_new_process(run: _Run, checkpoint: Checkpoint, model_run: _ModelRun) -> LatentsComparison:
    """Measure one precision in a process of its own, and return the comparison with its engines added."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        # Classes of a checkout cannot be sent.
        sent = run._replace(toolkit=None)
        done = pool.submit(_measure_apart, sent, checkpoint, model_run, uses_toolkit=run.toolkit is not None)
        run.report.rows, comparison = done.result()
    return comparison


def _measure_apart(
    run: _Run, checkpoint: Checkpoint, model_run: _ModelRun, *, uses_toolkit: bool
) -> tuple[list[Row], LatentsComparison]:
    """Measure one precision, and return the rows of all precisions so far and the comparison."""
    if uses_toolkit:
        run = run._replace(toolkit=_toolkit(None))
    with torch.no_grad():
        _measure_precision(run, checkpoint, model_run)
    return run.report.rows, model_run.comparison


def _measure_precision(run: _Run, checkpoint: Checkpoint, model_run: _ModelRun) -> None:
    """Load the model in one precision and measure its engines over it."""
    precision, names, settings, comparison = model_run
    run.clock.reset_peak()
    # Compiled blocks cannot run eagerly again.
    compiles = False if EngineName.EXACT in names else None
    try:
        settings = {**settings, "attention": settings["attention"] if precision == "fp8" else None}
        components = checkpoint.load(precision, **settings, compile=compiles)
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from error
    others = _other_engines(components, run.toolkit, names)
    session = Session(components, others, plan=run.plan, report=run.report, clock=run.clock)
    _report_loaded(components, run.report, run.clock, cold=Part.COLD in run.parts)
    images, steps = ImageTimes(session, comparison), StepTimes(session, comparison)
    available = [name for name in names if name in others or name not in BASELINES]
    _measure_engines(session, run.parts, available, steps=steps, images=images)
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as folder:
        _measure_rest(session, run.parts, images=images, folder=Path(folder))
    # Last: it changes how blocks attend.
    if Part.PARALLEL in run.parts and len(run.devices) > 1:
        compiled = session.engine_name != "exact"
        steps_only = Part.STEPS in run.parts and not run.parts & {Part.IMAGE, Part.FEW_STEPS}
        # Before attention changes: one device attends as a worker does.
        images_alone = {} if steps_only else images.measure_all()
        # Several devices attend in bfloat16; see `worker.serve`.
        if attends_in_float8(components.transformer):
            set_float8_attention(components.transformer, enabled=False)
        shared = {**settings, "attention": "bf16", "compile": compiled}
        measure_parallel(
            session,
            checkpoint.settings(precision, **shared),
            run.devices,
            images_alone=images_alone,
        )


def _free_memory() -> None:
    """Free a model's memory; its hooks form reference cycles, which only the garbage collector breaks."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _toolkit(chosen: Sequence[EngineName] | None) -> Toolkit | None:
    """Return AI Toolkit's classes if their engine is chosen and a checkout is configured."""
    root = Settings().ai_toolkit_path
    if chosen and EngineName.AI_TOOLKIT not in chosen:
        return None
    if chosen and root is None:
        raise typer.BadParameter(
            "engine ai-toolkit needs AI_TOOLKIT_PATH to name a checkout of AI Toolkit", param_hint="--engine"
        )
    try:
        return load_toolkit(root) if root else None
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="AI_TOOLKIT_PATH") from error


def _report_loaded(components: Components, report: Report, clock: Clock, *, cold: bool) -> None:
    """Report where the model was placed and, for the part `cold`, how long loading it from the page cache took."""
    transformer_b = sum(weight.numel() for weight in components.transformer.parameters()) / 1e9
    precision = components.precision.name
    report.add(
        "placement",
        precision=precision,
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
    if components.placement.text_encoder == "resident":  # a streamed encoder is read with each prompt instead
        read["text encoder"] = sum(weight.nbytes for weight in components.text_encoder.parameters())
    for part, seconds in components.load_s.items():
        rate: dict[str, Any] = {}
        if part in read:
            rate = {"gb": read[part] / 1e9, "gb_per_s": read[part] / 1e9 / seconds}
        report.add(f"cold start: {part}", precision=precision, seconds=seconds, **rate)
    weights_s = sum(seconds for part, seconds in components.load_s.items() if part != "compiler")
    report.add("cold start: weights", precision=precision, seconds=weights_s, peak_gb=clock.peak_gb())


def _other_engines(
    components: Components, toolkit: Toolkit | None, chosen: Collection[EngineName]
) -> dict[str, Engine]:
    """Build AI Toolkit's and diffusers' engines over our weights."""
    others: dict[str, Engine] = {}
    if toolkit is not None and EngineName.AI_TOOLKIT in chosen:
        others[EngineName.AI_TOOLKIT] = ToolkitEngine.from_components(components, toolkit)
    if EngineName.DIFFUSERS in chosen:
        others[EngineName.DIFFUSERS] = DiffusersEngine(components)
    return others


def _measure_engines(
    session: Session, parts: set[Part], names: Sequence[EngineName], *, steps: StepTimes, images: ImageTimes
) -> None:
    """Measure each engine's steps and image at every size, and leave the last engine active."""
    if Part.REFERENCES in parts:
        session.references.measure(session.report, session.clock, repeat=session.plan.repeat)
    for name in names:
        if name in (EngineName.COMPILED, EngineName.FAST):
            session.compile(name)
        # Diffusers' pipelines prepare and encode references in another way.
        compares_references = Part.REFERENCES in parts and name is not EngineName.DIFFUSERS
        for size in session.plan.sizes:
            if Part.STEPS in parts:
                steps.measure(name, size)
            if Part.IMAGE in parts:
                images.measure_usual(name, size)
            for count in session.plan.references if compares_references else ():
                steps.measure(name, size, references=count)


def _measure_rest(session: Session, parts: set[Part], *, images: ImageTimes, folder: Path) -> None:
    """Run the parts that compare their times with a step of this project's engine."""
    measures: dict[Part, Callable[[], object]] = {
        Part.SWITCH: lambda: measure_swaps(session, folder),
        Part.PROMPT: lambda: measure_prompt(session),
        Part.TOGETHER: lambda: measure_joint_passes(session),
        Part.BATCH: lambda: measure_batch(session, folder),
        Part.FEW_STEPS: images.measure_all,
    }
    for part, measure in measures.items():
        if part in parts:
            measure()


if __name__ == "__main__":
    typer.run(main)
