"""Draw the pictures of a replay next to each other, for the eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageOps

_GAP_PX = 8
# A difference of a few steps in 255 is invisible; the contact sheet shows it this many times brighter.
_DIFFERENCE_GAIN = 4
# In place of a reference image that is not on this host.
_MISSING = "lightgrey"


@dataclass(frozen=True)
class SheetRow:
    """The pictures of one sample.

    Attributes:
        theirs: the trainer's, of the same size as ours; None if there is none.
        references: the reference images, in the order of their slots, as the model reads them; None for one that is not
            on this host.
    """

    ours: Image.Image
    theirs: Image.Image | None = None
    references: Sequence[Image.Image | None] = ()


def draw_contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """Draw one row for each sample: its references, the trainer's picture, ours, and their brightened difference.

    References are scaled into the size of the sample's picture.
    """
    reference_columns = max(len(row.references) for row in rows)
    cells = [[*_reference_cells(row, reference_columns), *_picture_cells(row)] for row in rows]
    columns = max(len(row) for row in cells)
    widths = [
        max(cell.width for row in cells for cell in row[column : column + 1] if cell) for column in range(columns)
    ]
    heights = [row.ours.height for row in rows]
    sheet = Image.new("RGB", (_total(widths), _total(heights)), "white")
    for number, row in enumerate(cells):
        for column, cell in enumerate(row):
            if cell is not None:
                sheet.paste(cell, (_offset(widths, column), _offset(heights, number)))
    return sheet


def _reference_cells(row: SheetRow, columns: int) -> Iterator[Image.Image | None]:
    for reference in row.references:
        if reference is None:
            yield Image.new("RGB", row.ours.size, _MISSING)
        else:
            yield ImageOps.contain(reference.convert("RGB"), row.ours.size)
    # A row with fewer references than others keeps its pictures below theirs.
    yield from [None] * (columns - len(row.references))


def _picture_cells(row: SheetRow) -> Iterator[Image.Image]:
    ours = row.ours.convert("RGB")
    if row.theirs is None:
        yield ours
        return
    theirs = row.theirs.convert("RGB")
    brighter = [min(255, step * _DIFFERENCE_GAIN) for step in range(256)] * 3
    yield from (theirs, ours, ImageChops.difference(ours, theirs).point(brighter))


def _total(lengths: Sequence[int]) -> int:
    return _offset(lengths, len(lengths)) - _GAP_PX


def _offset(lengths: Sequence[int], index: int) -> int:
    return sum(lengths[:index]) + index * _GAP_PX
