"""`make fuzz`: fuzzes a live API as each caller, prints a table, and exits with 1 if something was found."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fuzz.run import Run, fuzz
from fuzz.target import CALLERS, Target, serve

# Most of the time is for the caller who reaches everything.
_FIRST_SHARE: Final = 0.6
_LEAST_S: Final = 10
# The API's handler of defects logs this.
_DEFECT: Final = "unexpected error"


def main(
    seconds: Annotated[int, typer.Option(min=1, help="Seconds for all callers together.")] = 300,
    only: Annotated[list[str] | None, typer.Option(help="Caller, e.g. admin; repeat for several.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier run, to repeat its random choices.")] = None,
) -> None:
    """Fuzz the API; the folder with its log stays if something was found."""
    console = Console()
    callers = only or list(CALLERS)
    if unknown := sorted({*callers} - {*CALLERS}):
        raise typer.BadParameter(f"{unknown[0]!r} is no caller; write one of {', '.join(CALLERS)}", param_hint="--only")
    options = [] if seed is None else ["--seed", str(seed)]
    folder = Path(tempfile.mkdtemp(prefix="flux2-fuzz-"))
    runs: dict[str, Run] = {}
    with serve(folder) as target:
        for caller, share in _shares(callers, seconds).items():
            console.print(f"{caller}: {share} s")
            runs[caller] = fuzz(target.url, target.headers[caller], seconds=share, options=options)
            if not runs[caller].is_sound:
                console.print(runs[caller].output, markup=False, highlight=False)
        defects = _count_defects(target)
    console.print(_table(runs))
    if defects or not all(run.is_sound for run in runs.values()):
        if not all(run.cases for run in runs.values()):
            console.print("a caller's time was over before its first case: raise --seconds (FUZZ_SECONDS)")
        console.print(f"{defects} defects in the API's log; all files are in {folder}")
        raise typer.Exit(1)
    shutil.rmtree(folder)


def _shares(callers: list[str], seconds: int) -> dict[str, int]:
    """Return the seconds of each caller, the first of which has most."""
    rest = len(callers) - 1
    first = seconds if rest == 0 else round(seconds * _FIRST_SHARE)
    others = round((seconds - first) / rest) if rest else 0
    return {caller: max(_LEAST_S, others if index else first) for index, caller in enumerate(callers)}


def _count_defects(target: Target) -> int:
    return target.log.read_text(encoding="utf-8", errors="replace").count(_DEFECT)


def _table(runs: dict[str, Run]) -> Table:
    table = Table("caller", "operations", "cases", "faults", title="schemathesis, all checks and phases")
    for caller, run in runs.items():
        table.add_row(caller, str(run.operations), str(run.cases), str(run.faults))
    return table


if __name__ == "__main__":
    typer.run(main)
