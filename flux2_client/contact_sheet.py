"""Draw the pictures of a replay next to each other, for the eye."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageOps

from flux2_client.similarity import difference_image

_GAP_PX = 8
# In place of a reference image that is not on this host.
_MISSING = "lightgrey"
# The trainer's picture, ours and the difference.
_PICTURES = 3
# A sheet of this many pixels takes 400 MB; pictures of many samples are shrunk.
_MAX_PIXELS = 2**27


class ContactSheet:
    """Rows of a sample's references, the trainer's picture, ours, and their brightened difference.

    Args:
        samples: number of rows.
        references: number of references of the sample that has the most.
    """

    def __init__(self, *, samples: int, references: int) -> None:
        self._references = references
        self._side = math.isqrt(_MAX_PIXELS // (samples * (references + _PICTURES)))
        self._rows: list[list[Image.Image | None]] = []

    def add(
        self, ours: Image.Image, theirs: Image.Image | None = None, references: Sequence[Image.Image | None] = ()
    ) -> None:
        """Add a row.

        Args:
            theirs: the trainer's picture, of the same size as ours; None leaves it and the difference out.
            references: as the model reads them, in the order of their slots; None for one that is not on this host.
        """
        cells = [*(_reference_cell(reference, ours.size) for reference in references), *_picture_cells(ours, theirs)]
        for cell in cells:
            cell.thumbnail((self._side, self._side))
        # A row with fewer references than others keeps its pictures below theirs.
        blanks = [None] * (self._references - len(references))
        self._rows.append([*cells[: len(references)], *blanks, *cells[len(references) :]])

    def draw(self) -> Image.Image:
        """Return the sheet, RGB."""
        heights = [max(cell.height for cell in row if cell) for row in self._rows]
        widths = [max((cell.width for cell in column if cell), default=0) for column in zip(*self._rows, strict=True)]
        sheet = Image.new("RGB", (_offset(widths) - _GAP_PX, _offset(heights) - _GAP_PX), "white")
        for number, row in enumerate(self._rows):
            for column, cell in enumerate(row):
                if cell is not None:
                    sheet.paste(cell, (_offset(widths[:column]), _offset(heights[:number])))
        return sheet


def _reference_cell(reference: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """Return a reference, scaled into the size of the sample's picture."""
    if reference is None:
        return Image.new("RGB", size, _MISSING)
    return ImageOps.contain(reference.convert("RGB"), size)


def _picture_cells(ours: Image.Image, theirs: Image.Image | None) -> Iterator[Image.Image]:
    ours = ours.convert("RGB")
    if theirs is None:
        yield ours
        return
    theirs = theirs.convert("RGB")
    # Before any of them is shrunk, and of the pixels themselves.
    yield from (theirs, ours, difference_image(ours, theirs))


def _offset(lengths: Sequence[int]) -> int:
    return sum(lengths) + len(lengths) * _GAP_PX
