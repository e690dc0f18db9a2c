"""Commands of `flux2` that load the model: worker, render, verify and tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.visible_text import escape_controls
from worker.conversion.target import TargetLayout
from worker.verify.outcome import CaseType, Precision, VerifiedEngine, format_json, format_line, format_summary

if TYPE_CHECKING:
    from shared.settings import Settings

app = typer.Typer(pretty_exceptions_enable=False)

# Each command imports its modules when it runs: every `flux2` command imports this one, and torch takes seconds.


@app.command()
def worker(
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, auto:N, cuda, cuda:N or cpu; several render each image together: cuda:0,cuda:1. Default: "
            "FLUX2_WORKER_DEVICE."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Slot name, unique on this host; default: FLUX2_WORKER_NAME, else host and device."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="One slot on each of these GPUs: all, a number N for the first N, or indices as in 0,2."),
    ] = None,
    gpus_per_slot: Annotated[
        int | None,
        typer.Option(help="Let this many GPUs render each image together: 2, 4 or 8; --gpus is all by default."),
    ] = None,
    simulate: Annotated[
        int | None, typer.Option(min=1, help="Run N slots that draw labelled pictures without a model, for trials.")
    ] = None,
    simulated_step_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds that a step of a simulated slot takes at 1024x1024.")
    ] = 0.05,
) -> None:
    """Render items from the queue until SIGTERM: on one device, or with a slot on each GPU or group of GPUs."""
    if gpus_per_slot is not None:
        if gpus_per_slot not in (1, 2, 4, 8):
            raise typer.BadParameter(f"--gpus-per-slot {gpus_per_slot}: write 1, 2, 4 or 8")
        gpus = gpus or "all"
    if sum(option is not None for option in (device, gpus, simulate)) > 1:
        raise typer.BadParameter("--device, --gpus and --simulate exclude each other")
    settings = _configure(device=device, name=name)
    if simulate == 1:
        from worker.simulation.serve import serve_simulated

        serve_simulated(settings, step_s=simulated_step_s)
        return
    if simulate:
        from worker.fleet.run import run_simulated_slots

        raise typer.Exit(run_simulated_slots(settings, simulate, step_s=simulated_step_s))
    from shared.model_places import check_model_places
    from worker.checkpoint.hub_cache import require_cached_model

    # Before torch, which takes seconds to import.
    check_model_places(settings.model)
    require_cached_model(settings.model)
    if gpus is not None:
        from worker.fleet.run import run_gpu_slots

        raise typer.Exit(run_gpu_slots(settings, gpus, per_slot=gpus_per_slot or 1))
    from worker.serve import serve

    serve(settings)


def _configure(*, data: Path | None = None, **worker: str | None) -> Settings:
    """Return the settings, of a stack's folder or the environment, with those that an option replaces; set up logs."""
    from shared import logs
    from shared.local.data_folder import read_settings
    from shared.settings import Settings

    settings = read_settings(data) if data else Settings()
    logs.configure(settings.log)
    given = {name: value for name, value in worker.items() if value is not None}
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=given)})


@app.command()
def tiny(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder for the checkpoint.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Also write a LoRA of a subject, with the trigger word `sks`, to this file.")
    ] = None,
    styles: Annotated[
        Path | None, typer.Option(file_okay=False, help="Also write the style adapters into this folder.")
    ] = None,
    edit: Annotated[
        Path | None, typer.Option(help="Also write a LoRA that edits a reference image to this file.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model id of the files, e.g. flux2_klein_4b.")] = "flux2",
) -> None:
    """Write the demonstration model: files laid out as the real ones, small enough for a CPU."""
    from shared.catalog import find_model
    from worker.model.demo_model import EDIT, STYLES, write_tiny_adapter, write_tiny_checkpoint

    entry = find_model(model)
    write_tiny_checkpoint(folder, entry)
    if adapter is not None:
        write_tiny_adapter(adapter, model=entry)
    if styles is not None:
        for name in STYLES:
            write_tiny_adapter(styles / f"{name}.safetensors", name, entry)
    if edit is not None:
        write_tiny_adapter(edit, EDIT, entry)


@app.command()
def render(
    request: Annotated[
        Path, typer.Argument(help="JSON file with a request, as for POST /v1/inference.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images.")] = Path("render-output"),
    device: Annotated[
        str | None, typer.Option(help="auto, auto:N, cuda, cuda:N or cpu; default: FLUX2_WORKER_DEVICE.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a `flux2 up`: use its model and adapters, not the environment's.")
    ] = None,
) -> None:
    """Render a request on this machine, without queue and storage. Prints one JSON object per image."""
    settings = _configure(data=data, device=device)
    from worker.offline import render_request

    for saved in render_request(request.read_bytes(), output, settings):
        typer.echo(json.dumps({"file": str(saved.file), **saved.report}))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Adapter file in any layout that jobs can use.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    to: Annotated[TargetLayout, typer.Option(help="Layout of the tool that reads the file.")],
    ignore_text_encoder: Annotated[
        bool, typer.Option("--ignore-text-encoder", help="Leave out the layers of a text encoder.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write an adapter in the layout of another tool, with the same update of every layer to the bit."""
    from dataclasses import asdict

    from shared.job import ADAPTER_PARTS
    from shared.settings import Settings
    from worker.conversion.convert import convert_adapter

    ignore = ADAPTER_PARTS if ignore_text_encoder else ()
    done = convert_adapter(file, out, to, max_bytes=Settings().adapters.max_bytes, overwrite=force, ignore=ignore)
    typer.echo(json.dumps({"file": str(out), **asdict(done)}) if as_json else f"{out}: {done.describe()}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of golden files, e.g. tests/goldens.")],
    only: Annotated[CaseType | None, typer.Option(help="Run only the cases of this type.")] = None,
    dtype: Annotated[Precision | None, typer.Option(help="Run only the cases of this precision.")] = None,
    as_one_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of lines.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto, auto:N, cuda, cuda:N or cpu. The golden files were made on a CPU.")
    ] = "cpu",
    engine: Annotated[
        VerifiedEngine, typer.Option(help="Code to verify; `diffusers` shows how far its own pipelines differ.")
    ] = VerifiedEngine.EXACT,
    against_toolkit: Annotated[
        bool,
        typer.Option(
            "--against-toolkit", help="Also run AI Toolkit's own classes on this machine and compare bit by bit."
        ),
    ] = False,
    toolkit: Annotated[
        Path | None, typer.Option(help="Checkout of AI Toolkit, if its code runs; default: AI_TOOLKIT_PATH.")
    ] = None,
) -> None:
    """Check that this machine renders the same images as AI Toolkit. Exit code 1 if any case fails."""
    from shared.settings import Settings
    from worker.verify.verification import start_verification

    toolkit = toolkit or Settings().ai_toolkit_path
    needed = against_toolkit or engine is VerifiedEngine.TOOLKIT
    if needed and toolkit is None:
        option = "--against-toolkit" if against_toolkit else f"--engine {engine}"
        raise typer.BadParameter(f"{option} needs a checkout of AI Toolkit: give --toolkit or set AI_TOOLKIT_PATH")
    started = start_verification(
        folder,
        only=only,
        dtype=dtype,
        device=device,
        engine=engine,
        against_toolkit=against_toolkit,
        toolkit=toolkit if needed else None,
    )
    outcomes = []
    if not as_one_json:
        typer.echo("".join(f"{name.replace('_', ' ')}: {text}\n" for name, text in started.about.items()))
    for outcome in started.outcomes:
        outcomes.append(outcome)
        if not as_one_json:
            # Names and errors of cases come from the folder's files.
            typer.echo(escape_controls(format_line(outcome, widths=started.widths)))
    typer.echo(format_json(outcomes, started.about) if as_one_json else f"\n{format_summary(outcomes)}")
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)
