"""The client's side of the `flux2` command: what a person does with a service, over its HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images.")] = Path("demo-output"),
) -> None:
    """Render the example request at two multipliers on this host, and leave nothing running."""
    from rich.console import Console

    from flux2_client.demo import run

    run(Console(), output)


@app.command()
def replay(
    config: Annotated[Path, typer.Argument(help="AI Toolkit training config.", exists=True, dir_okay=False)],
    lora: Annotated[str | None, typer.Option(help="Adapter under the adapter root; default: name/name.")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="The trainer's sample images, to compare.", exists=True, file_okay=False)
    ] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images.")] = Path("replay-output"),
    url: Annotated[str, typer.Option(help="The API.")] = "http://127.0.0.1:8000",
) -> None:
    """Render a training config's sample previews, and hold them against the trainer's pictures."""
    from rich.console import Console

    from flux2_client.client import Client
    from flux2_client.replay import run

    with Client(url) as client:
        run(Console(), client, config, lora=lora, samples=samples, output=output)
