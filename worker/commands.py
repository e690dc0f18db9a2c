"""The worker's side of the `flux2` command. Torch is imported inside the commands: `flux2 api` must not pay for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shared import logs
from shared.settings import Settings
from worker.verify.outcome import CaseType, Precision, VerifiedEngine, as_json, line, summary

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def worker(
    device: Annotated[str | None, typer.Option(help="auto, cuda, cuda:N or cpu; default: FLUX2_WORKER_DEVICE.")] = None,
    name: Annotated[str | None, typer.Option(help="Slot name; default: host and device.")] = None,
) -> None:
    """Render items on one device until told to stop. Start one process a GPU."""
    settings = Settings()
    logs.configure(settings.log)
    if device is not None:
        settings.worker.device = device
    if name is not None:
        settings.worker.name = name
    from worker.serve import serve

    serve(settings)


@app.command()
def tiny(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write the checkpoint into.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Also write its subject's LoRA, bound to `sks`, to this file.")
    ] = None,
    styles: Annotated[
        Path | None, typer.Option(file_okay=False, help="Also write its style adapters into this folder.")
    ] = None,
) -> None:
    """Write the embedded demonstration model: the real files' layout, small enough for a CPU."""
    from worker.model.demo_model import STYLES, write_tiny_adapter, write_tiny_checkpoint

    write_tiny_checkpoint(folder)
    if adapter is not None:
        write_tiny_adapter(adapter)
    if styles is not None:
        for name in STYLES:
            write_tiny_adapter(styles / f"{name}.safetensors", name)


@app.command()
def render(
    request: Annotated[
        Path, typer.Argument(help="Request JSON, as for POST /v1/inference.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images.")] = Path("render-output"),
    device: Annotated[str | None, typer.Option(help="As for `flux2 worker`.")] = None,
) -> None:
    """Render a request here, without queue and storage; prints one JSON object an image."""
    settings = Settings()
    logs.configure(settings.log)
    if device is not None:
        settings.worker.device = device
    from worker.offline import render_request

    for saved in render_request(request.read_bytes(), output, settings):
        typer.echo(json.dumps({"file": str(saved.file), **saved.report}))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of goldens, e.g. tests/goldens.")],
    only: Annotated[CaseType | None, typer.Option(help="Run the cases of one type.")] = None,
    dtype: Annotated[Precision | None, typer.Option(help="Run the cases of one precision.")] = None,
    as_one_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of lines.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto. The goldens were made on a CPU.")] = "cpu",
    engine: Annotated[
        VerifiedEngine, typer.Option(help="Whose code runs; `diffusers` shows how far its own pipelines are off.")
    ] = VerifiedEngine.EXACT,
    against_toolkit: Annotated[
        bool, typer.Option("--against-toolkit", help="Compare with AI Toolkit's own classes, run here, to the bit.")
    ] = False,
    toolkit: Annotated[
        Path | None, typer.Option(help="Checkout of AI Toolkit, where one is needed; default: AI_TOOLKIT_PATH.")
    ] = None,
) -> None:
    """Check that this machine renders what AI Toolkit renders. Exit code 1 if any case fails."""
    from worker.verify.verification import start_verification

    toolkit = toolkit or Settings().ai_toolkit_path
    needed = against_toolkit or engine is VerifiedEngine.TOOLKIT
    if needed and toolkit is None:
        what = "--against-toolkit" if against_toolkit else f"--engine {engine}"
        raise typer.BadParameter(f"{what} needs --toolkit or AI_TOOLKIT_PATH")
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
            typer.echo(line(outcome, widths=started.widths))
    typer.echo(as_json(outcomes, started.about) if as_one_json else f"\n{summary(outcomes)}")
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)
