"""The worker's side of the `flux2` command. Torch is imported inside the commands: `flux2 api` must not pay for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared import logs
from shared.settings import Settings

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
    folder: Annotated[Path, typer.Argument(help="Folder to write the checkpoint into.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Also write a matching LoRA in AI Toolkit's format to this file.")
    ] = None,
) -> None:
    """Write the tiny FLUX.2 checkpoint: the real files' layout, small enough for a CPU."""
    from worker.pipeline.tiny import write_matching_adapter, write_tiny_checkpoint

    write_tiny_checkpoint(folder)
    if adapter is not None:
        write_matching_adapter(folder, adapter)
