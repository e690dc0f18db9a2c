"""`make chaos`: run every scenario, the control and the mutations; a table for people, JSON for scripts."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chaos.report import table
from chaos.suite import run
from chaos.trial import Lab, Outcome
from shared.local.s3_server import S3Server


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of the storm; 3.4 items each.")] = 300,
    seed: Annotated[int | None, typer.Option(help="Repeat a run's dice.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Scenarios, e.g. F7; repeat for several.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for histories and logs; default: a temporary one, kept if anything is wrong."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Exit code 1 if a scenario broke a promise, or a mutation broke none."""
    console = Console(stderr=as_json)
    dice = secrets.randbelow(2**32) if seed is None else seed
    folder = keep or Path(tempfile.mkdtemp(prefix="flux2-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"seed {dice}, histories and logs in {folder}")
    outcomes: list[Outcome] = []
    with S3Server(folder / "servers") as s3:
        for outcome in run(Lab(folder, s3, dice), jobs=jobs, only=only or []):
            console.print(f"{outcome.wall_s:6.1f} s  {'ok ' if outcome.as_expected else 'BAD'}  {outcome.name}")
            outcomes.append(outcome)
    if as_json:
        rows = [{**asdict(outcome), "as_expected": outcome.as_expected} for outcome in outcomes]
        typer.echo(json.dumps({"seed": dice, "jobs": jobs, "outcomes": rows}))
    else:
        console.print(table(outcomes, seed=dice))
    if not all(outcome.as_expected for outcome in outcomes):
        raise typer.Exit(1)
    if keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
