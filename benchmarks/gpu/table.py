"""Print the seconds of an image as one Markdown table, from rows that `--out` wrote on one or several machines:
`python -m benchmarks.gpu.table benchmarks/gpu/rows/*.jsonl`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from shared.catalog import MODELS

# In the order of the table's rows.
_ENGINES = {
    "ai-toolkit": "AI Toolkit, eager",
    "diffusers": "diffusers, eager",
    "exact": "`exact`, not compiled",
    "compiled": "`exact`",
    "fast, bf16": "`fast`, attention in bf16",
    "fast": "`fast`",
}


class _Line(NamedTuple):
    """A line of the table; lines are sorted by these values."""

    card: str
    size: int
    engine: int
    gpus: int

    def cells(self) -> list[str]:
        name = list(_ENGINES.values())[self.engine]
        return [self.card, f"{self.size}x{self.size}", name, str(self.gpus)]


class _Column(NamedTuple):
    """A column of the table; columns are sorted by these values."""

    model: int
    few: bool
    title: str


def main(
    rows: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files that --out has written.")],
) -> None:
    """Print a line for each card, size, engine and number of GPUs, and a column for each model and way of sampling."""
    try:
        found = [row for file in rows for row in read_rows(file)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ROWS") from error
    if not found:
        raise typer.BadParameter("no image was measured in these files", param_hint="ROWS")
    typer.echo(image_table(found))


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of whole images in a file.

    Raises:
        ValueError: names the line that is no row.
    """
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            is_image = "sampling" in row
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, line {number} is no row of a measurement: {line[:80]}") from error
        if is_image:
            yield row


def image_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return a Markdown table of the seconds of images; of several rows for one cell, the last counts."""
    seconds = {(_line(row), _column(row)): row["seconds"] for row in rows}
    lines = sorted({line for line, _ in seconds})
    columns = sorted({column for _, column in seconds})
    table = [["card", "image", "engine", "GPUs per slot", *(column.title for column in columns)]]
    for line in lines:
        times = (seconds.get((line, column)) for column in columns)
        table.append([*line.cells(), *("" if time is None else _format(time) for time in times)])
    head, *body = ("".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in table)
    return "\n".join([head, "|---" * len(table[0]) + "|", *body])


def _line(row: dict[str, Any]) -> _Line:
    # Torch calls it "NVIDIA H100 80GB HBM3".
    card = re.sub(r"^NVIDIA | HBM\w+$", "", row["device"])
    engine = row["engine"]
    # Of all engines, only `fast` can attend in another precision. Rows of earlier versions do not name it.
    if engine == "fast" and row.get("attention") == "bf16":
        engine = "fast, bf16"
    return _Line(card, row["size"], list(_ENGINES).index(engine), row["devices"])


def _column(row: dict[str, Any]) -> _Column:
    """Return the column of a model with its usual steps, of a preset, or of a distilled model."""
    sampling, usual = row["sampling"], f"{row['steps']} steps"
    model = MODELS[sampling if sampling in MODELS else row["model"]]
    title = model.title
    if sampling not in MODELS:
        title += f", {usual}" if sampling == usual else f", {sampling}, {usual}"
    return _Column(list(MODELS).index(model.id), sampling != usual, f"tiny {title}" if row["tiny"] else title)


def _format(seconds: float) -> str:
    """Return seconds with at most three digits, or all before the point."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


if __name__ == "__main__":
    typer.run(main)
