"""Arrange the images of a sweep by the axes that differ between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from flux2_client.models import Answer, ImageInfo, SweepAxis, SweepCell

#: A value of an axis as a cell has it: a label, a number, the index of a prompt, or a size like `1024x768`.
Value = str | int | float | None

#: The axes by which images are arranged, the ones that people compare first in front: rows, columns, then the rest.
ARRANGED: Final = ("checkpoint", "multiplier", "seed", "prompt", "steps", "guidance_scale", "size")
# A prompt without a value of its own gets a default, and the next prompt may get another one.
_OF_A_PROMPT: Final = frozenset({"seed", "steps", "guidance_scale", "size"})


class SavedCell(SweepCell[ImageInfo]):
    """One image of a sweep, its values of the axes, and its file.

    Attributes:
        file: name of the image's file below the folder of the sweep; None if it was not saved.
    """

    file: str | None = None

    @property
    def problem(self) -> str:
        """Why there is no file, in words."""
        if self.error is not None:
            return f"{self.status}: {self.error.message}"
        return "not saved" if self.status == "succeeded" else self.status


class SavedSweep(Answer):
    """A sweep as its folder keeps it: the answer of the API, with the files of the images."""

    sweep_id: str
    status: str
    model: str
    axes: tuple[SweepAxis, ...]
    cells: tuple[SavedCell, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts of the prompts, by the indices that cells name."""
        return tuple(str(text) for axis in self.axes if axis.name == "prompt" for text in axis.values)

    def values(self, name: str) -> list[Value]:
        """Return the values that cells have of an axis, each once, in their order in the sweep."""
        return axis_values(self.cells, name)

    def varying(self) -> list[str]:
        """Return the axes with several values, in the order of `ARRANGED`."""
        return varying_axes(self.cells)

    def describe(self, name: str, value: Value) -> str:
        """Return a value of an axis in words that stand alone."""
        if name == "prompt":
            index = int(value or 0)
            text = self.prompts[index] if index < len(self.prompts) else ""
            return f"prompt {index + 1}: {text}" if text else f"prompt {index + 1}"
        number = f"{value:g}" if isinstance(value, float) else str(value)
        return _WORDS[name].format(number)


def axis_values(cells: Sequence[SweepCell[Any]], name: str) -> list[Value]:
    """Return the values that cells have of an axis, each once, in their order."""
    return [value for value in dict.fromkeys(getattr(cell, name) for cell in cells) if value is not None]


def varying_axes(cells: Sequence[SweepCell[Any]]) -> list[str]:
    """Return the axes with several values, in the order of `ARRANGED`."""
    return [name for name in ARRANGED if _varies(cells, name)]


def _varies(cells: Sequence[SweepCell[Any]], name: str) -> bool:
    if name not in _OF_A_PROMPT:
        return len(axis_values(cells, name)) > 1
    first: dict[int, Value] = {}
    return any(first.setdefault(cell.prompt, getattr(cell, name)) != getattr(cell, name) for cell in cells)


_WORDS: Final = {
    "checkpoint": "{}",
    "multiplier": "multiplier {}",
    "seed": "seed {}",
    "size": "{}",
    "steps": "{} steps",
    "guidance_scale": "guidance {}",
}


@dataclass(frozen=True)
class Block:
    """The images that differ in two axes at most: a table.

    Attributes:
        title: the values that all of them have; empty if the sweep has no further axis.
        rows: labels of the rows; one empty text if no axis makes rows.
        cells: by row and column; None where the sweep has no image.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[SavedCell | None, ...], ...]


def arrange(sweep: SavedSweep) -> Iterator[Block]:
    """Yield the sweep as tables: checkpoints in rows and multipliers in columns, if both differ.

    The base model, which has no multiplier, stands in every column.
    """
    names = sweep.varying()
    # One axis makes columns: images next to each other are easier to compare.
    rows, columns, held = (names[:1], names[1:2], names[2:]) if len(names) > 1 else ([], names, [])
    placed = _place(sweep, names)
    for title in _combinations(sweep, held):
        row_values, column_values = _combinations(sweep, rows), _combinations(sweep, columns)
        cells = tuple(
            tuple(placed.get(_key(names, title | row | column)) for column in column_values) for row in row_values
        )
        if any(cell for row in cells for cell in row):
            yield Block(
                ", ".join(sweep.describe(name, value) for name, value in title.items()),
                tuple(_label(sweep, column) for column in column_values),
                tuple(_label(sweep, row) for row in row_values),
                cells,
            )


def _place(sweep: SavedSweep, names: Sequence[str]) -> dict[tuple[Value, ...], SavedCell]:
    """Return the cells by their values of the axes; one without a value is there for each of them."""
    placed: dict[tuple[Value, ...], SavedCell] = {}
    for cell in sweep.cells:
        own = [[getattr(cell, name)] if getattr(cell, name) is not None else sweep.values(name) for name in names]
        for key in product(*own):
            placed.setdefault(key, cell)
    return placed


def _combinations(sweep: SavedSweep, names: Sequence[str]) -> list[dict[str, Value]]:
    return [dict(zip(names, values, strict=True)) for values in product(*map(sweep.values, names))]


def _key(names: Sequence[str], values: Mapping[str, Value]) -> tuple[Value, ...]:
    return tuple(values[name] for name in names)


def _label(sweep: SavedSweep, values: Mapping[str, Value]) -> str:
    return "".join(sweep.describe(name, value) for name, value in values.items())
