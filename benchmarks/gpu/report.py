"""Collect the rows of measurements, print them as JSON lines or as a table, and append them to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

#: Engines that others are compared with, in order of preference.
BASELINES = ("ai-toolkit", "diffusers")

_COLUMNS = ("what", "engine", "size", "median_ms", "seconds", "ratio", "against", "peak_gb", "device", "model", "tiny")


class Report:
    """Collects rows.

    Args:
        device: name of the device; every row carries it, and the next two.
        model: id of the model in the catalogue.
        tiny: whether the model is a small one of the same architecture.
        as_json: print each row as JSON when it is added.
        out: file to which each row is appended when it is added, so that a killed run leaves its finished rows.
    """

    def __init__(self, *, device: str, model: str, tiny: bool, as_json: bool, out: Path | None) -> None:
        self.rows: list[Row] = []
        self._device = device
        self._run = {"device": device, "model": model, "tiny": tiny}
        self._as_json = as_json
        self._out = out

    def add(self, what: str, **values: Any) -> None:
        """Add a row: `median_ms` or `seconds` is its time, and `ratio` is that divided by the time of `against`."""
        row = {"what": what, **values, **self._run}
        self.rows.append(row)
        line = json.dumps(row)
        if self._as_json:
            typer.echo(line)
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(line + "\n")

    def against(self, what: str, *, size: int, engine: str, time: float) -> Row:
        """Return `ratio` and `against` for an engine's time, given in the unit of the rows to compare with."""
        times: dict[str, float] = {
            row["engine"]: row["median_ms"] if "median_ms" in row else row["seconds"]
            for row in self.rows
            if row["what"] == what and row["size"] == size
        } | {engine: time}
        for baseline in BASELINES:
            if baseline in times:
                return {"ratio": time / times[baseline], "against": f"{baseline} eager"}
        return {"ratio": None, "against": None}

    def print_table(self) -> None:
        """Print all rows as a table, unless they were printed as JSON."""
        if self._as_json:
            return
        table = Table("what", "engine", "size", "time", "ratio", "peak GB", "more", title=self._device)
        for row in self.rows:
            ratio = "" if row.get("ratio") is None else f"{row['ratio']:.3f} x {row['against']}"
            peak = "" if row.get("peak_gb") is None else f"{row['peak_gb']:.1f}"
            more = ", ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in _COLUMNS)
            table.add_row(row["what"], row.get("engine"), str(row.get("size", "")), _time(row), ratio, peak, more)
        Console().print(table)


def _time(row: Row) -> str:
    if "median_ms" in row:
        return f"{row['median_ms']:.3f} ms" if row["median_ms"] < 10 else f"{row['median_ms']:.1f} ms"
    return f"{row['seconds']:.3f} s" if "seconds" in row else ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
