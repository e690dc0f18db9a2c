"""Draw the picture of a sweep's page in docs/sweeps.md: `python -m tools.sweep_picture docs/images/sweep.webp`.

It shows what `flux2 sweep` writes, with the demonstration model.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from PIL import Image

from shared.demo_model import DRAWN_PX, PROMPTS
from tools.chromium import ADVICE, find_chromium
from tools.console_pictures import demonstration_service

_ADAPTERS: Final = ("neon=tiny/neon.safetensors", "blueprint=tiny/blueprint.safetensors")
_WIDTH, _HEIGHT, _SIDE_PX = 900, 780, 144
# The image that the picture shows as rated and picked: neon at 1.
_PICKED: Final = 4
_QUALITY: Final = 80


def main(file: Annotated[Path, typer.Argument(dir_okay=False, help="The picture, a WebP file.")]) -> None:
    """Render a sweep, and write a picture of its page."""
    if (program := find_chromium()) is None:
        raise SystemExit(ADVICE)
    with demonstration_service() as url, tempfile.TemporaryDirectory(prefix="flux2-sweep-") as folder:
        words = [word for adapter in _ADAPTERS for word in ("--checkpoint", adapter)]
        words += [word for prompt in (PROMPTS[4], PROMPTS[0]) for word in ("-p", prompt)]
        axes = ["--base", "--multiplier", "0.5,1,1.5", "--seed", "1,2", "--size", str(DRAWN_PX)]
        command = [
            sys.executable,
            "-m",
            "shared.cli",
            "sweep",
            *words,
            *axes,
            "--yes",
            "--output",
            folder,
            "--url",
            url,
        ]
        subprocess.run(command, check=True)
        _draw(program, Path(folder) / "index.html", file)


def _draw(program: str, source: Path, file: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.goto(source.as_uri())
        page.get_by_label("Size of the images").fill(str(_SIDE_PX))
        page.get_by_role("gridcell").nth(_PICKED).focus()
        page.keyboard.press("5")
        page.keyboard.press("b")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(page.screenshot())).save(file, quality=_QUALITY, method=6)
        browser.close()


if __name__ == "__main__":
    typer.run(main)
