"""The `flux2` command: the whole service on one host, and the commands of each installed side.

The sides register their commands in the entry-point group `flux2.commands`, so this module imports neither.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from shared.settings import Settings
from shared.unknown_settings import find_unknown_settings

if TYPE_CHECKING:
    from shared.local.stack import Stack

# No limit: only the header of a base checkpoint is read.
_ANY_SIZE = 2**62
_MARKS = {"ok": "[green]ok", "warning": "[yellow]warning", "failed": "[red]FAILED"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Render FLUX.2 LoRAs in bulk on your own GPUs.",
)


@app.command()
def up(
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder for all data, logs and adapters.")] = Path(
        ".flux2"
    ),
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the API on loopback, 0 for a free one; default: FLUX2_API_PORT."),
    ] = None,
    redis_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Redis; default: a free one.")
    ] = None,
    s3_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port of S3; default: a free one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of worker processes; with CUDA, one per GPU.")] = 1,
) -> None:
    """Start Redis, S3, the API and workers on this host, and run them until Ctrl-C."""
    # It imports boto3, which takes 0.2 s; the other commands should not wait for it.
    from shared.local.stack import Stack

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
    try:
        # Handlers replace KeyboardInterrupt only now: during the start it must raise, so that the start is undone.
        stopped = _stop_event()
        _describe_stack(console, stack)
        while not stopped.wait(1.0):
            stack.restart_dead()
    finally:
        with console.status("stopping"):
            stack.stop()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Adapter file to inspect.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Transformer file in BFL's layout, e.g. flux2-dev.safetensors, to compare the adapter's layers with."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Model id of that transformer.")] = "flux2",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an adapter file's kind, ranks, layers, training step and sha256. Exit code 1 if it cannot be used."""
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
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False) -> None:
    """Check Redis, its durability, the clock, storage, adapters and workers. Exit code 1 if a check fails."""
    findings = []
    table = Table("", "what", "detail", "what to do", box=None)
    for finding in run_checks(Settings()):
        findings.append(finding)
        table.add_row(_MARKS[finding.state], escape(finding.name), escape(finding.detail), escape(finding.remedy))
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
    if not as_json:
        Console().print(table)
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _stop_event() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _describe_stack(console: Console, stack: Stack) -> None:
    demo_adapter = f"  (with {DEMO_ADAPTER})" if stack.serves_demo_model else ""
    console.print(f"API       {stack.url}  (documentation: {stack.url}/docs)")
    console.print(f"Redis     {stack.servers.redis.url}")
    console.print(f"S3        {stack.servers.s3.url}  bucket {stack.servers.s3.bucket}")
    console.print(f"adapters  {stack.adapter_root}{demo_adapter}")
    console.print(f"logs      {', '.join(str(log) for log in stack.logs)}")
    if stack.serves_demo_model:
        console.print(f"model     the {LABEL}; set FLUX2_MODEL_PATH to serve real weights")
        console.print(f"          It draws best at {DRAWN_PX}x{DRAWN_PX}, for example: " + "; ".join(PROMPTS))
    console.print("Press Ctrl-C to stop everything.")


def _text(value: object) -> str:
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, tuple) else str(value)


def main() -> None:
    """Run the command; print an error that the caller can fix as one line, without a traceback."""
    try:
        for name, suggestion in find_unknown_settings().items():
            hint = f"did you mean {suggestion}?" if suggestion else "docs/reference/settings.md lists all settings"
            _print_error(f"unknown setting {name} is ignored; {hint}", style="yellow")
        app()
    except ValidationError as error:
        for problem in error.errors():
            reason = problem["msg"].removeprefix("Value error, ")
            path = "_".join(str(part) for part in problem["loc"]).upper()
            # A check across several settings names them in its message.
            _exit_with(reason if reason.startswith("FLUX2_") else f"FLUX2_{path}: {reason}")
    except UnicodeDecodeError as error:
        _exit_with(f".env is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8")
    except SettingsError as error:
        _exit_with(f"{error}; settings are named FLUX2_<SECTION>_<NAME>")
    except Flux2Error as error:
        _exit_with(str(error))


def _exit_with(message: str) -> None:
    _print_error(message, style="red")
    sys.exit(1)


def _print_error(message: str, *, style: str) -> None:
    # Messages hold paths and keys from files; Rich must neither style nor wrap them.
    Console(stderr=True).print(message, style=style, markup=False, highlight=False, soft_wrap=True)


for _side in entry_points(group="flux2.commands"):
    app.add_typer(_side.load())

if __name__ == "__main__":
    main()
