"""Put two pictures of `flux2 demo` side by side: `python -m tools.demo_picture demo-output docs/images/demo.jpg`.

They are the example request at multipliers 1 and 0.5, at half their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

_NAMES = ("multiplier-1-0.png", "multiplier-0.5-0.png")
_SIDE_PX, _GAP_PX = 512, 8


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `flux2 demo --output` wrote.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="JPEG to write.")],
) -> None:
    """Write the picture."""
    sheet = Image.new("RGB", (2 * _SIDE_PX + _GAP_PX, _SIDE_PX), "white")
    for place, name in enumerate(_NAMES):
        with Image.open(folder / name) as picture:
            sheet.paste(picture.convert("RGB").resize((_SIDE_PX, _SIDE_PX)), (place * (_SIDE_PX + _GAP_PX), 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=85)


if __name__ == "__main__":
    typer.run(main)
