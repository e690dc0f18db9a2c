"""The commands `flux2 cache list` and `flux2 cache clear`, for the files that this host's workers downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.sources.inventory import CacheInventory

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="List or remove files that the workers downloaded."
)

_DAY_S = 86_400.0

_Data = Annotated[
    Path | None, typer.Option(help="Folder of a `flux2 up`: its workers' files, not those of the environment's.")
]


@app.command("list")
def list_files(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    data: _Data = None,
) -> None:
    """List the downloaded files of this host, the least recently used first."""
    from dataclasses import asdict

    from shared.console import LineConsole

    inventory = _open(data)
    lines = inventory.lines()
    if as_json:
        for line in lines:
            typer.echo(json.dumps(asdict(line)))
        return
    console = LineConsole()
    if not lines:
        console.print_line(f"no files in {inventory.folder.root} (FLUX2_SOURCES_CACHE_DIR)")
        return
    console.print_rows(
        [
            (
                (line.sha256 or "incomplete")[:12],
                format_bytes(line.size_bytes),
                line.used_at,
                "in use" if line.in_use else "",
                ", ".join(line.sources),
            )
            for line in lines
        ]
    )
    total = sum(line.size_bytes for line in lines)
    console.print_line(f"{_count(len(lines))}, {format_bytes(total)} in {inventory.folder.root}")


@app.command("clear")
def clear_files(
    older_than: Annotated[
        float, typer.Option(min=0, help="Keep the files that were used within this number of days.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    data: _Data = None,
) -> None:
    """Remove the downloaded files of this host, except those in use; workers fetch them again when they need them."""
    from dataclasses import asdict

    cleared = _open(data).clear(older_than_s=older_than * _DAY_S)
    if as_json:
        typer.echo(json.dumps(asdict(cleared)))
        return
    in_use = f"; {cleared.in_use} in use stay, {format_bytes(cleared.in_use_bytes)}" if cleared.in_use else ""
    typer.echo(f"removed {_count(cleared.removed)}, {format_bytes(cleared.removed_bytes)}{in_use}")


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def format_bytes(size: int) -> str:
    """Return a size in the largest decimal unit that gives at least 1."""
    for unit, divisor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= divisor:
            return f"{size / divisor:.1f} {unit}"
    return f"{size} B"


def _open(data: Path | None) -> CacheInventory:
    # Imported here, as in each command: `--help` must not wait for libraries.
    from shared.local.data_folder import read_settings
    from shared.settings import Settings
    from shared.sources.inventory import CacheInventory

    settings = (read_settings(data) if data else Settings()).sources
    return CacheInventory(settings.cache_dir, max_bytes=settings.cache_max_bytes)
