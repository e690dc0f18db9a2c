"""Simulate the scheduling of fleets and judge it; see `benchmarks.scheduling`.

Prints each figure, and each bar with its verdict, or JSON lines with `--json`. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scheduling.bars import Outcome
from benchmarks.scheduling.scenarios import SCENARIOS
from shared.console import LineConsole
from shared.ledger.connection import Client, connect
from shared.local.redis_server import RedisServer


def main(
    only: Annotated[list[str] | None, typer.Option(help="A scenario to run; repeat the option for several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of tables.")] = False,
) -> None:
    """Run the scenarios on a Redis of their own."""
    unknown = sorted(set(only or ()) - set(SCENARIOS))
    if unknown:
        raise typer.BadParameter(f"no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}", param_hint="--only")
    outcomes = []
    with _redis() as client:
        for name in only or SCENARIOS:
            client.flushall()
            outcomes.append(SCENARIOS[name](client, seed))
            typer.echo(json.dumps(_to_json(outcomes[-1]))) if as_json else _print(outcomes[-1])
    missed = [bar.name for outcome in outcomes for bar in outcome.bars if not bar.is_met]
    if missed:
        typer.echo(f"missed: {'; '.join(missed)}", err=True)
        raise typer.Exit(1)


@contextmanager
def _redis() -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="flux2-sim-") as data, RedisServer(Path(data)) as server:
        client = connect(server.url, timeout_s=30)
        # Each write would wait for the disk, and nothing here needs to survive.
        client.config_set("appendfsync", "no")
        yield client


def _to_json(outcome: Outcome) -> dict[str, object]:
    bars = [asdict(bar) | {"is_met": bar.is_met} for bar in outcome.bars]
    return {"scenario": outcome.scenario, "figures": dict(outcome.figures), "bars": bars}


def _print(outcome: Outcome) -> None:
    typer.echo(f"\n{outcome.scenario}")
    rows = [(name, f"{value:,.3f}".rstrip("0").rstrip("."), "") for name, value in outcome.figures.items()]
    rows += [
        (bar.name, f"{bar.value:.3f}", f"{'met' if bar.is_met else 'MISSED'}: {bar.limit}") for bar in outcome.bars
    ]
    LineConsole().print_rows(rows)


if __name__ == "__main__":
    typer.run(main)
