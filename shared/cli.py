"""The `flux2` command: the whole service on one host, and the commands that each installed side adds.

The sides join through the entry-point group `flux2.commands`, so neither is imported where it is not installed.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared import logs
from shared.adapters.inspection import inspect_adapter, read_linear_layers
from shared.demo_model import DEMO_ADAPTER, DRAWN_PX, LABEL, PROMPTS
from shared.doctor import run_checks
from shared.errors import AdapterNotFound, Flux2Error
from shared.local.stack import Stack
from shared.settings import Settings, unknown_variables

# A base checkpoint may be of any size: only its header is read.
_ANY_SIZE = 2**62

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Render FLUX.2 LoRAs in bulk on your own GPUs.",
)


@app.command()
def up(
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder of all state.")] = Path(".flux2"),
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the API, on loopback; default: FLUX2_API_PORT.")
    ] = None,
    redis_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Redis; default: a free one.")
    ] = None,
    s3_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port of S3; default: a free one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; with CUDA, one device each.")] = 1,
) -> None:
    """Start Redis, S3, the API and workers on this host, and keep them until Ctrl-C."""
    settings = Settings()
    logs.configure(settings.log)
    console = Console()
    stack = Stack(
        data,
        settings,
        workers=workers,
        api_port=settings.api.port if port is None else port,
        redis_port=redis_port,
        s3_port=s3_port,
    )
    with console.status("starting Redis, S3, the API and workers"):
        stack.start()
    # From here on; a Ctrl-C during the start raises there, and undoes it.
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        console.print(f"API       {stack.url}  (documentation: {stack.url}/docs)")
        console.print(f"Redis     {stack.servers.redis.url}")
        console.print(f"S3        {stack.servers.s3.url}  bucket {stack.servers.s3.bucket}")
        console.print(
            f"adapters  {stack.adapter_root}" + (f"  ({DEMO_ADAPTER} is there)" if stack.serves_demo_model else "")
        )
        console.print(f"logs      {', '.join(str(log) for log in stack.logs)}")
        if stack.serves_demo_model:
            console.print(f"model     the {LABEL}; set FLUX2_MODEL_PATH for real weights")
            console.print(f"          it can draw, best at {DRAWN_PX}x{DRAWN_PX}: " + "; ".join(PROMPTS))
        console.print("Ctrl-C stops everything.")
        while not stopped.wait(1.0):
            stack.restart_dead()
    finally:
        with console.status("stopping"):
            stack.stop()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Adapter file.")],
    base: Annotated[
        Path | None, typer.Option(help="Transformer file in BFL's layout, e.g. flux2-dev.safetensors, to match.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model id of that base.")] = "flux2",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what an adapter file is: kind, ranks, layers, training step, sha256. Exit code 1 if it cannot be used."""
    limit = Settings().adapters.max_bytes
    if not file.is_file():
        raise AdapterNotFound(f"{file}: no such file")
    layers = None if base is None else read_linear_layers(base, max_bytes=_ANY_SIZE)
    found = asdict(inspect_adapter(file, max_bytes=limit, layers=layers, model=model if base else None))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        table = Table(show_header=False, box=None)
        for name, value in found.items():
            table.add_row(name.replace("_", " "), _text(value))
        Console().print(table)
    if found["refused"]:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """Check Redis, its durability, the clock, storage, adapters and workers. Exit code 1 if anything has failed."""
    findings = []
    table = Table("", "what", "detail", "what to do", box=None)
    for finding in run_checks(Settings()):
        findings.append(finding)
        mark = {"ok": "[green]ok", "warning": "[yellow]warning", "failed": "[red]FAILED"}[finding.state]
        table.add_row(mark, escape(finding.name), escape(finding.detail), escape(finding.remedy))
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
    if not as_json:
        Console().print(table)
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _text(value: object) -> str:
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, tuple) else str(value)


def main() -> None:
    """Run the command; a mistake that the caller can mend is one line, not a traceback."""
    try:
        for name in unknown_variables():
            _say(f"{name} is no setting, and has no effect", style="yellow")
        app()
    except ValidationError as error:
        for problem in error.errors():
            said = problem["msg"].removeprefix("Value error, ")
            path = "_".join(str(part) for part in problem["loc"]).upper()
            _fail(said if said.startswith("FLUX2_") else f"FLUX2_{path}: {said}")
    except UnicodeDecodeError as error:
        _fail(f".env is not text in UTF-8: {error.reason} at byte {error.start}")
    except SettingsError as error:
        _fail(f"{error}; settings are named FLUX2_<SECTION>_<NAME>")
    except Flux2Error as error:
        _fail(str(error))


def _fail(message: str) -> None:
    _say(message, style="red")
    sys.exit(1)


def _say(message: str, *, style: str) -> None:
    Console(stderr=True).print(message, style=style, markup=False, highlight=False, soft_wrap=True)


for _side in entry_points(group="flux2.commands"):
    app.add_typer(_side.load())

if __name__ == "__main__":
    main()
