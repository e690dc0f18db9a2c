"""Commands of `flux2` for this host: up, inspect and doctor."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.adapters.inspection import Inspection

app = typer.Typer(pretty_exceptions_enable=False)

# Each command imports its modules when it runs: together they take 0.5 s, and `--help` needs none of them.

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("FAILED", "red")}


@app.command()
def up(
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder for all data, logs and adapters.")] = Path(
        ".flux2"
    ),
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the API, 0 for a free one; default: FLUX2_API_PORT."),
    ] = None,
    redis_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Redis; default: a free one.")
    ] = None,
    s3_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port of S3; default: a free one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of worker processes; with CUDA, one per GPU.")] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model id to serve, e.g. flux2_klein_4b: its demonstration model, or the weights in FLUX2_MODEL_PATH."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen on FLUX2_API_HOST although there is no API key; also: FLUX2_API_INSECURE."
        ),
    ] = False,
) -> None:
    """Start Redis, S3, the API and workers on this host, and run them until Ctrl-C."""
    from shared import logs
    from shared.local.stack import Stack
    from shared.local.up import run_stack
    from shared.settings import Settings

    settings = Settings()
    logs.configure(settings.log)
    run_stack(
        Stack(
            data,
            settings,
            workers=workers,
            model=model,
            api_port=settings.api.port if port is None else port,
            redis_port=redis_port,
            s3_port=s3_port,
            insecure=insecure,
        )
    )


@app.command()
def inspect(
    file: Annotated[
        str, typer.Argument(help="Adapter file to inspect: a path, or a link as in loras[].path, e.g. hf://...")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Say what a submit for this base would say: a model id, e.g. flux2_klein_4b, a transformer's file, a "
            "model's folder, or its repository in the hub's cache."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model id of a file or folder; default: the one with its layers, else flux2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an adapter's trainer, kind, scale, layers and base. Exit code 1 if it cannot be used."""
    from dataclasses import asdict

    from shared.adapters.inspection_base import find_base
    from shared.adapters.inspection_text import describe_rows
    from shared.console import LineConsole

    compared = None if base is None else find_base(base, model=model)
    found = _inspect(
        file,
        layers=None if compared is None else compared.layers,
        model=None if compared is None else compared.model,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        LineConsole().print_rows(describe_rows(asdict(found)))
    if found.refused:
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a `flux2 up`: check that service, not the one in the environment.")
    ] = None,
) -> None:
    """Check Redis, its durability, the clock, storage, adapters and workers. Exit code 1 if a check fails."""
    from dataclasses import asdict, replace

    from shared.console import LineConsole
    from shared.doctor import run_checks
    from shared.local.data_folder import read_settings
    from shared.settings import Settings

    findings = []
    for finding in run_checks(read_settings(data) if data else Settings()):
        if data and (finding.name, finding.state) == ("redis", "failed"):
            finding = replace(finding, remedy=f"start it: flux2 up --data {shlex.quote(str(data))}")
        findings.append(finding)
        if as_json:
            typer.echo(json.dumps(asdict(finding)))
    if not as_json:
        marks = [_MARKS[finding.state] for finding in findings]
        LineConsole().print_rows(
            [
                (mark, finding.name, finding.detail, finding.remedy)
                for (mark, _), finding in zip(marks, findings, strict=True)
            ],
            styles=[style for _, style in marks],
        )
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _inspect(file: str, *, layers: Mapping[str, tuple[int, int]] | None, model: str | None) -> Inspection:
    from shared.adapters.inspection import inspect_adapter, inspect_remote
    from shared.adapters.remote import RemoteAdapters
    from shared.errors import AdapterNotFound
    from shared.settings import Settings
    from shared.sources.source import LocalFile, parse_source
    from shared.sources.sources import Sources

    settings = Settings()
    max_bytes = settings.adapters.max_bytes
    path = Path(file)
    source = LocalFile(file) if path.is_file() else parse_source(file)
    if not isinstance(source, LocalFile):
        remote = RemoteAdapters(Sources(settings), max_bytes=max_bytes)
        return inspect_remote(source, remote, layers=layers, model=model)
    if not path.is_file():
        raise AdapterNotFound(_describe_missing(path, settings.adapters.root))
    return inspect_adapter(path, max_bytes=max_bytes, layers=layers, model=model)


def _describe_missing(file: Path, root: Path) -> str:
    """Say why `flux2 inspect` finds no file, and which adapter may be meant."""
    from shared.adapters.nearest import find_nearest

    if file.is_dir():
        found = sorted(path.name for path in file.glob("*.safetensors"))[:3]
        held = f"; it holds {', '.join(found)}" if found else ""
        return f"{file} is a folder; name a .safetensors file{held}"
    if not file.is_absolute() and (root / file).is_file():
        return f"{file}: no such file; did you mean {root / file}, under the adapter root?"
    near = find_nearest(file.name, base=file.parent, follow_symlinks=False) if file.parent.is_dir() else []
    hint = f"; did you mean {' or '.join(str(file.parent / name) for name in near)}?" if near else ""
    return f"{file}: no such file{hint or f'; the adapter root is {root.absolute()}'}"
