"""`make chaos`: runs every scenario, the control and the mutations, and prints a table or JSON."""

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
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of the storm, of 3.4 items each.")] = 300,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier run, to repeat its random choices.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Scenario to run, e.g. F7; repeat for several.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for histories and logs; default: a temporary one, which stays if anything fails."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the scenarios; exit with 1 if one broke a promise, or if the control or a mutation broke none."""
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
