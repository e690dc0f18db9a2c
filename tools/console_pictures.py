"""Draw the pictures of the console in docs/console.md: `python -m tools.console_pictures docs/images`.

They show a real service on this host with the demonstration model, on a screen and, in the dark theme, on a phone.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from PIL import Image

from flux2_client.client import Client
from shared.demo_model import DRAWN_PX, PROMPTS
from shared.local.stack import Stack
from shared.settings import Settings
from tools.chromium import ADVICE, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_SIZES: Final[tuple[tuple[str, int, int, Literal["light", "dark"]], ...]] = (
    ("", 1280, 800, "light"),
    ("-phone", 390, 844, "dark"),
)
_QUALITY: Final = 80
_STYLES: Final = ("tiny/neon.safetensors", "tiny/blueprint.safetensors")
_JOB_TIMEOUT_S: Final = 600.0
# Images arrive from the object store, and previews by the stream of events.
_SETTLE_MS: Final = 3000


def main(folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder of the pictures.")]) -> None:
    """Start the service, render some jobs, and write a picture of each view in each size."""
    from playwright.sync_api import sync_playwright

    program = find_chromium()
    if program is None:
        raise SystemExit(ADVICE)
    folder.mkdir(parents=True, exist_ok=True)
    with demonstration_service() as url, sync_playwright() as playwright:
        views = _views(_render(url))
        browser = playwright.chromium.launch(executable_path=program)
        for name, fragment in views.items():
            for size in _SIZES:
                _draw(browser, f"{url}/{fragment}", folder / f"console-{name}{size[0]}.webp", size)
        browser.close()


@contextmanager
def demonstration_service() -> Iterator[str]:
    """Serve the demonstration model on this host inside the block; the value is its address."""
    with (
        tempfile.TemporaryDirectory(prefix="flux2-pictures-") as data,
        Stack(Path(data), Settings.model_construct(), inherit=False) as stack,
    ):
        yield stack.url


def _render(url: str) -> Sequence[str]:
    """Render the same prompts with two styles, and leave a job that is rendered for minutes; return the ids."""
    prompts = [{"prompt": prompt, "width": DRAWN_PX, "height": DRAWN_PX} for prompt in PROMPTS]
    with Client(url) as client:
        jobs = [client.submit(_request(prompts, lora)) for lora in _STYLES]
        for job in jobs:
            client.wait(job.request_id, timeout_s=_JOB_TIMEOUT_S)
        slow = [prompt | {"width": 256, "height": 256, "sample_steps": 150} for prompt in prompts * 4]
        client.submit(_request(slow, _STYLES[0]))
    return [job.request_id for job in jobs]


def _request(prompts: Sequence[dict[str, Any]], lora: str) -> dict[str, Any]:
    return {"model": "flux2", "prompts": prompts, "loras": [{"path": lora}]}


def _views(jobs: Sequence[str]) -> dict[str, str]:
    """Return the fragment of each view, by the name of its picture."""
    return {
        "create": "#/create",
        "queue": "#/queue",
        "gallery": "#/gallery",
        "image": f"#/gallery/{jobs[0]}/0",
        "compare": f"#/compare?requests={'%2C'.join(jobs)}",
        "adapters": "#/adapters/tiny%2Fneon.safetensors",
        "keys": "#/keys?by=adapter",
    }


def _draw(browser: Browser, address: str, file: Path, size: tuple[str, int, int, Literal["light", "dark"]]) -> None:
    _, width, height, theme = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.goto(address)
    page.locator("main#main:not([aria-busy])").wait_for()
    page.wait_for_timeout(_SETTLE_MS)
    Image.open(io.BytesIO(page.screenshot())).save(file, quality=_QUALITY, method=6)
    page.close()


if __name__ == "__main__":
    typer.run(main)
