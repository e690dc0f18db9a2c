"""The API's side of the `flux2` command. FastAPI is imported inside: a worker's command line needs none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared import logs
from shared.settings import Settings

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: FLUX2_API_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on; default: FLUX2_API_PORT.")
    ] = None,
) -> None:
    """Serve HTTP until told to stop."""
    import uvicorn

    from api.app import create_app

    settings = Settings()
    logs.configure(settings.log)
    uvicorn.run(
        create_app(settings),
        host=host or settings.api.host,
        port=settings.api.port if port is None else port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # longer than balancers (60 s) and pollers keep an idle connection, or requests get lost
    )


@app.command()
def demo(
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images.")] = Path("demo-output"),
) -> None:
    """Render the example request at two multipliers on this host, and leave nothing running."""
    from rich.console import Console

    from api.demo import run

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

    from api.client import Client
    from api.replay import run

    with Client(url) as client:
        run(Console(), client, config, lora=lora, samples=samples, output=output)
