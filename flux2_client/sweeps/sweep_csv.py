"""Write a sweep as a table for a spreadsheet or a program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from flux2_client.sweeps.grid import SavedCell, SavedSweep
from shared.spreadsheet_cell import harmless_cell

#: The columns, in their order.
COLUMNS: Final = (
    *("number", "checkpoint", "multiplier", "prompt_number", "prompt", "size", "steps", "guidance_scale", "seed"),
    *("status", "file", "request_id", "index", "sha256", "denoise_s", "error"),
)


def sweep_csv(sweep: SavedSweep) -> str:
    """Return one row for each image, in the sweep's order, as CSV (RFC 4180) with a header.

    `number` and `prompt_number` begin at 1; `denoise_s` is in seconds. A value that an image does not have is empty.
    A text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in _rows(sweep):
        writer.writerow([harmless_cell(value) if isinstance(value, str) else value for value in row])
    return file.getvalue()


def _rows(sweep: SavedSweep) -> Iterator[tuple[Any, ...]]:
    prompts = dict(enumerate(sweep.prompts))
    for number, cell in enumerate(sweep.cells, start=1):
        yield (
            *(number, cell.checkpoint, cell.multiplier, cell.prompt + 1, _text(cell, prompts), cell.size),
            *(cell.steps, cell.guidance_scale, cell.seed, cell.status, cell.file, cell.request_id, cell.index),
            *((cell.image.sha256, cell.image.timings.get("denoise")) if cell.image else (None, None)),
            cell.error.message if cell.error else None,
        )


def _text(cell: SavedCell, prompts: dict[int, str]) -> str | None:
    """Return the prompt as it was rendered, with its trigger word, if the image says so."""
    return cell.image.prompt if cell.image and cell.image.prompt else prompts.get(cell.prompt)
