"""The client's commands of `flux2`, which use a service over its HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flux2_client import adapter_commands, job_commands, sweep_commands, webhook_commands
from flux2_client.batch.batch_command import batch
from flux2_client.compare_command import compare
from flux2_client.mcp_command import mcp
from flux2_client.options import ApiKey, Profile, Url
from flux2_client.reproduce_command import reproduce
from flux2_client.submit_command import submit
from flux2_client.top_command import top
from flux2_client.usage_command import usage

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(submit)
app.command()(batch)
app.command()(compare)
app.command()(job_commands.wait)
app.command()(job_commands.status)
app.command()(job_commands.result)
app.command()(job_commands.download)
app.command()(job_commands.cancel)
app.command("list")(job_commands.list_jobs)
app.command()(reproduce)
app.command()(top)
app.command()(usage)
app.command()(mcp)
app.add_typer(sweep_commands.app, name="sweep")
app.add_typer(adapter_commands.app, name="adapters")
app.add_typer(webhook_commands.app, name="webhooks")

# Each command imports its modules when it runs: a base installation has neither httpx2 nor Pillow.


@app.command()
def demo(
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to save the images in.")] = Path("demo-output"),
    size: Annotated[
        int, typer.Option(min=64, max=4096, help="Width and height of the example's images, in pixels.")
    ] = 1024,
) -> None:
    """Render the example request at two multipliers on this host, and stop everything afterwards."""
    from flux2_client.demo import run_demo
    from shared.console import LineConsole

    run_demo(LineConsole(), output, size_px=size)


@app.command()
def replay(
    config: Annotated[Path, typer.Argument(help="AI Toolkit training config.", exists=True, dir_okay=False)],
    lora: Annotated[
        str | None,
        typer.Option(help="Adapter, relative to the adapter root; default: NAME/NAME.safetensors of the config."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the trainer's samples to compare with, named like 17__000000250_0.jpg: the step in 9 "
            "digits, and the sample's number from 0. Those of the last step are compared.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the samples' reference images (ctrl_img), if they are not at the config's paths on this "
            "host; files are found by the end of their path. May be repeated.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to save the images in.")] = Path(
        "replay-output"
    ),
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Render the sample previews of a training config and compare them with the trainer's pictures."""
    from flux2_client.profiles import find_target
    from flux2_client.replay import replay_client, run_replay
    from shared.console import LineConsole

    console = LineConsole()
    with replay_client(console, find_target(url, profile, api_key)) as client:
        run_replay(
            console, client, config, lora=lora, samples=samples, output=output, image_folders=tuple(images or ())
        )
