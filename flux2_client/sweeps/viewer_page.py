"""Write the page that shows a sweep: one file with its images in it, which sends no request."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from PIL import Image

from flux2_client.html_page import PAGE, escape, write_html
from flux2_client.report import count_images
from flux2_client.sweeps.grid import SavedCell, SavedSweep, Value
from flux2_client.sweeps.pictures import map_pictures
from shared.visible_text import escape_controls

# The pictures of a page take about 50 MB at most: a pixel of WebP takes 0.1 to 0.2 bytes.
_PAGE_PIXELS: Final = 2**28
_SMALLEST_PX, _LARGEST_PX = 192, 1024
_QUALITY: Final = 82
# Pillow's own, 4, takes twice the time for files that are hardly smaller.
_METHOD: Final = 2
_SIDE_PX: Final = 256

_TITLES: Final = {
    "checkpoint": "Checkpoint",
    "multiplier": "Multiplier",
    "seed": "Seed",
    "prompt": "Prompt",
    "size": "Size",
    "steps": "Steps",
    "guidance_scale": "Guidance",
}
#: The values of an image from which `flux2 sweep best` makes a request.
PICKED: Final = ("checkpoint", "multiplier", "seed", "prompt", "size", "steps", "guidance_scale")


def write_viewer(sweep: SavedSweep, folder: Path) -> Path:
    """Write the page into the folder of a sweep; return its path.

    The page holds copies of the images, smaller ones the more there are, and links to the files.

    Raises:
        OutputRefused: the file of an image cannot be read, or the page cannot be written.
    """
    viewer = files("flux2_client.sweeps") / "viewer"
    title = f"Sweep {sweep.sweep_id}"
    write_html(
        folder / PAGE,
        _body(sweep, title, json.dumps(describe_sweep(sweep, folder))),
        title=title,
        style=(viewer / "viewer.css").read_text(encoding="utf-8"),
        script=(viewer / "viewer.js").read_text(encoding="utf-8"),
    )
    return folder / PAGE


def describe_sweep(sweep: SavedSweep, folder: Path) -> dict[str, Any]:
    """Return what the page shows, as JSON: the axes with several values, and the images with their places on them."""
    names = sweep.varying()
    values = {name: sweep.values(name) for name in names}
    shown = [cell for cell in sweep.cells if cell.file]
    side = max(_SMALLEST_PX, min(_LARGEST_PX, math.isqrt(_PAGE_PIXELS // max(1, len(shown)))))
    previews = map_pictures((folder / str(cell.file) for cell in shown), side, _preview)
    return {
        "sweep_id": sweep.sweep_id,
        "axes": [
            {
                "title": _TITLES[name],
                "labels": [escape_controls(sweep.describe(name, value)) for value in values[name]],
            }
            for name in names
        ],
        "cells": [
            {
                "number": number,
                "at": [_index(values[name], getattr(cell, name)) for name in names],
                "group": _group(sweep, cell),
                "description": _describe(sweep, cell),
                "values": {name: getattr(cell, name) for name in PICKED},
                **(_show(cell, next(previews)) if cell.file else {"problem": escape_controls(cell.problem)}),
            }
            for number, cell in enumerate(sweep.cells, start=1)
        ],
    }


def _index(values: list[Value], value: Value) -> int | None:
    return None if value is None else values.index(value)


def _preview(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY, method=_METHOD)
    data = base64.b64encode(file.getvalue()).decode()
    return {"preview": f"data:image/webp;base64,{data}", "width": picture.width, "height": picture.height}


def _show(cell: SavedCell, preview: dict[str, Any]) -> dict[str, Any]:
    seconds = cell.image.timings.get("denoise") if cell.image else None
    details = "" if seconds is None else f"; denoised in {seconds:.2f} s"
    return {"file": cell.file, "details": details, **preview}


def _group(sweep: SavedSweep, cell: SavedCell) -> str:
    """Name the adapter of an image, whose images are rated together."""
    names = [name for name in ("checkpoint", "multiplier") if getattr(cell, name) is not None]
    words = [sweep.describe(name, getattr(cell, name)) for name in names]
    return escape_controls(", ".join(words)) or "all images"


def _describe(sweep: SavedSweep, cell: SavedCell) -> str:
    # The prompt is the longest value.
    names = [name for name in PICKED if name != "prompt" and getattr(cell, name) is not None]
    words = [sweep.describe(name, getattr(cell, name)) for name in [*names, "prompt"]]
    return escape_controls(", ".join(words))


def _body(sweep: SavedSweep, title: str, data: str) -> Iterator[str]:
    count = count_images(len(sweep.cells))
    missing = sum(cell.file is None for cell in sweep.cells)
    yield f"<main><h1>{escape(title)}</h1>"
    yield f'<p class="faint">{count} of the model {escape(sweep.model)}{f", {missing} missing" if missing else ""}. '
    yield "Keys: arrows move, Enter zooms, 1 to 5 rate, 0 removes a rating, B picks the best.</p>"
    yield '<div class="tools" id="tools"></div>'
    yield '<div class="tools"><div><label for="side">Size of the images</label>'
    yield f'<input type="range" id="side" min="96" max="{_LARGEST_PX}" step="16" value="{_SIDE_PX}"></div></div>'
    yield '<div class="scroll"><table class="grid" id="grid" role="grid" aria-label="Images"></table></div>'
    yield '<h2>Ratings</h2><table class="ranking" id="ranking" hidden></table>'
    yield '<p id="picked"></p><button type="button" id="download" disabled>Download best.json</button>'
    yield '<p class="faint">Put it into this folder: <code>flux2 sweep best FOLDER</code> makes a request of it.</p>'
    yield "</main>"
    yield from _ZOOM
    yield '<p class="visually-hidden" role="status" id="said"></p>'
    # No text can end the element: the only way is a "<".
    yield '<script type="application/json" id="sweep">' + data.replace("<", "\\u003c") + "</script>"


_ZOOM: Final = (
    '<dialog id="zoom" aria-label="Image">',
    '<div class="tools">',
    *(
        f'<button type="button" id="{name}">{text}</button>'
        for name, text in (
            ("close", "Close"),
            ("previous", "Left"),
            ("next", "Right"),
            ("fit", "Fit"),
            ("actual", "100 %"),
            ("zoom-in", "Zoom in"),
            ("zoom-out", "Zoom out"),
        )
    ),
    '<span id="scale" class="faint"></span>',
    '<span role="group" aria-label="Rating">',
    *(
        f'<button type="button" data-stars="{stars}" aria-label="Rate {stars} of 5">{stars}</button>'
        for stars in range(1, 6)
    ),
    '</span><span id="stars" class="faint"></span>',
    '<button type="button" id="pick">Pick as best</button>',
    '<a id="original" target="_blank" rel="noopener">Open the file</a></div>',
    '<figure class="frame" id="frame" tabindex="0"><img id="zoomed" alt=""></figure>',
    '<p id="caption" class="faint"></p></dialog>',
)
