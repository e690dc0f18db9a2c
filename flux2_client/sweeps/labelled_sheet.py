"""Draw the images of a sweep as labelled tables, on as many pages as they need."""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from flux2_client.sweeps.grid import Block, SavedCell, SavedSweep, arrange
from flux2_client.sweeps.pictures import map_pictures
from shared.visible_text import escape_controls

#: Longest side of a page in pixels; programs that show images take larger ones badly.
MAX_SIDE_PX: Final = 8192

_GAP_PX: Final = 8
_FONT_PX: Final = 18
_LINE_PX: Final = 24
_LABEL_PX: Final = 200
# Pictures of few columns are larger; those of many become several tables.
_TABLE_PX: Final = 2400
_SMALLEST_PX, _LARGEST_PX = 192, 512
_TITLE_LINES: Final = 3
_PAPER, _INK, _FAINT, _BLANK = "white", "black", "dimgray", "lightgray"


@dataclass(frozen=True)
class _Band:
    """A strip of a page, as wide as the page: a title, labels of columns, or a row of pictures."""

    height: int
    label: str = ""
    texts: tuple[str, ...] = ()
    cells: tuple[SavedCell | None, ...] = ()


def draw_sheets(sweep: SavedSweep, folder: Path) -> Iterator[Image.Image]:
    """Yield the pages, RGB. An image that failed is a gray field that says so.

    Args:
        folder: where the files of the images are.

    Raises:
        OutputRefused: the file of an image cannot be read.
    """
    layout = _Layout.of(sweep)
    for bands in layout.pages():
        yield layout.draw(bands, folder)


@dataclass(frozen=True)
class _Layout:
    """The measures that all pages share.

    Attributes:
        side: longest side of a picture.
        field: width and height of the place of a picture.
        columns: most columns of a table.
        label: width of the labels of rows; 0 if no row has one.
    """

    blocks: Sequence[Block]
    side: int
    field: tuple[int, int]
    columns: int
    label: int

    @classmethod
    def of(cls, sweep: SavedSweep) -> _Layout:
        blocks = list(arrange(sweep))
        most = max(len(block.columns) for block in blocks)
        width, height = (max(sides) for sides in zip(*map(_sides, sweep.cells), strict=True))
        side = max(_SMALLEST_PX, min(_LARGEST_PX, _TABLE_PX // most, max(width, height)))
        scale = min(1.0, side / max(width, height))
        # Labels need some room too, above narrow pictures and in the place of missing ones.
        field = max(_SMALLEST_PX, math.ceil(scale * width)), max(_SMALLEST_PX, math.ceil(scale * height))
        label = _LABEL_PX if any(row for block in blocks for row in block.rows) else 0
        room = MAX_SIDE_PX - label - _GAP_PX
        return cls(blocks, side, field, min(most, room // (field[0] + _GAP_PX)), label)

    @property
    def width(self) -> int:
        return self.label + self.columns * (self.field[0] + _GAP_PX) + _GAP_PX

    def pages(self) -> Iterator[list[_Band]]:
        """Yield the bands of each page; a table that continues on another page repeats its title and its columns."""
        page: list[_Band] = []
        used = _GAP_PX
        for block in self.blocks:
            for first in range(0, len(block.columns), self.columns):
                part = slice(first, first + self.columns)
                heading = self._heading(block, part)
                pending = heading
                for label, row in zip(block.rows, block.cells, strict=True):
                    band = _Band(self.field[1] + _GAP_PX, label=label, cells=row[part])
                    height = sum(each.height for each in [*pending, band])
                    if page and used + height > MAX_SIDE_PX:
                        yield page
                        page, used, pending = [], _GAP_PX, heading
                        height = sum(each.height for each in [*pending, band])
                    page += [*pending, band]
                    used += height
                    pending = []
        yield page

    def _heading(self, block: Block, part: slice) -> list[_Band]:
        # About half of the font's size a letter, in the widest scripts of Europe.
        letters = max(20, 2 * (self.width - 2 * _GAP_PX) // _FONT_PX)
        lines = textwrap.wrap(
            escape_controls(block.title), letters, max_lines=_TITLE_LINES, placeholder=" …", break_on_hyphens=False
        )
        title = [_Band(_LINE_PX * len(lines) + _GAP_PX, label="\n".join(lines))] if lines else []
        columns = [_Band(_LINE_PX, texts=block.columns[part])] if any(block.columns) else []
        return [*title, *columns]

    def draw(self, bands: Sequence[_Band], folder: Path) -> Image.Image:
        sheet = Image.new("RGB", (self.width, sum(band.height for band in bands) + _GAP_PX), _PAPER)
        canvas = ImageDraw.Draw(sheet)
        files = [folder / cell.file for band in bands for cell in band.cells if cell and cell.file]
        pictures = map_pictures(files, self.side, lambda picture: picture)
        top = _GAP_PX
        for band in bands:
            self._draw_label(canvas, band, top)
            for column, text in enumerate(band.texts):
                _write(canvas, (self._left(column), top), text, self.field[0])
            for column, cell in enumerate(band.cells):
                if cell is not None:
                    place = (self._left(column), top)
                    if cell.file:
                        sheet.paste(next(pictures), place)
                    else:
                        self._draw_missing(canvas, cell, place)
            top += band.height
        return sheet

    def _draw_label(self, canvas: ImageDraw.ImageDraw, band: _Band, top: int) -> None:
        if band.cells:
            _write(canvas, (_GAP_PX, top), band.label, self.label - 2 * _GAP_PX, lines=self.field[1] // _LINE_PX)
        elif band.label:
            canvas.multiline_text((_GAP_PX, top), band.label, _INK, _font(), spacing=_LINE_PX - _FONT_PX)

    def _draw_missing(self, canvas: ImageDraw.ImageDraw, cell: SavedCell, place: tuple[int, int]) -> None:
        (left, top), (width, height) = place, self.field
        canvas.rectangle((left, top, left + width - 1, top + height - 1), _BLANK)
        lines = (height - 2 * _GAP_PX) // _LINE_PX
        _write(canvas, (left + _GAP_PX, top + _GAP_PX), cell.problem, width - 2 * _GAP_PX, lines=lines, ink=_FAINT)

    def _left(self, column: int) -> int:
        return _GAP_PX + self.label + column * (self.field[0] + _GAP_PX)


def _sides(cell: SavedCell) -> tuple[int, int]:
    width, _, height = cell.size.partition("x")
    return int(width), int(height)


def _write(
    canvas: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, *, lines: int = 1, ink: str = _INK
) -> None:
    """Write a text into a field; what does not fit ends in an ellipsis."""
    left, top = place
    for number, line in enumerate(_fold(escape_controls(text), width, lines)):
        canvas.text((left, top + number * _LINE_PX), line, ink, _font())


def _fold(text: str, width: int, lines: int) -> list[str]:
    """Break a text at any letter into at most `lines` lines of `width` pixels: labels are names of files, too."""
    folded: list[str] = []
    while text and len(folded) < lines:
        count = _fitting(text, width)
        folded.append(text[:count].strip())
        text = text[count:].lstrip()
    if text and folded:
        last = folded[-1]
        folded[-1] = last[: _fitting(last, int(width - _font().getlength("…")))] + "…"
    return folded


def _fitting(text: str, width: int) -> int:
    """Return how many of a text's first letters fit into a width; at least one, and whole words if possible."""
    font = _font()
    # A prompt may have 10,000 letters, and hardly one is narrower than a pixel.
    bound = min(len(text), max(1, width))
    # True from the first number of letters that is too wide.
    count = bisect_left(range(1, bound + 1), True, key=lambda letters: font.getlength(text[:letters]) > width)
    if count == len(text):
        return count
    space = text.rfind(" ", 0, count + 1)
    return space if space > 0 else max(1, count)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_PX)
