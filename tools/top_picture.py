"""Draw the picture of `flux2 top` in docs/operations.md: `python -m tools.top_picture docs/images/top.svg`.

It shows a real service on this host: Redis, the API, and `flux2 worker --simulate 8`, with jobs of three tenants.
"""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flux2_client.async_client import AsyncClient
from flux2_client.fleet import Fleet, read_fleet
from flux2_client.fleet_view import FleetView
from tools.simulated_service import simulated_service, submit

_SLOTS = 8
_STEP_S = 0.3
_ADAPTERS = {
    "robots/sks_robot_v2.safetensors": "sks_robot",
    "styles/neon_city.safetensors": "neon",
    "styles/blueprint.safetensors": "blueprint",
}
# Tenant, adapter, images and their steps.
_JOBS = (
    ("studio", "robots/sks_robot_v2.safetensors", 120, 25),
    ("studio", "styles/neon_city.safetensors", 60, 28),
    ("lab", "styles/blueprint.safetensors", 40, 34),
    ("agency", "styles/neon_city.safetensors", 16, 21),
    ("agency", "", 8, 18),
)
_WIDTH = 118


def main(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="SVG to write.")],
    after_s: Annotated[float, typer.Option(help="Seconds after which the fleet is shown.")] = 75.0,
) -> None:
    """Run the service for a while, and write what `flux2 top` shows."""
    with simulated_service(slots=_SLOTS, step_s=_STEP_S, adapters=_ADAPTERS) as url:
        for tenant, lora, images, steps in _JOBS:
            prompts = [{"prompt": f"picture {number}", "sample_steps": steps} for number in range(images)]
            submit(url, tenant=tenant, lora=lora, prompts=prompts)
        time.sleep(after_s)
        console = Console(record=True, width=_WIDTH, file=io.StringIO())
        console.print(FleetView(_read(url), "http://127.0.0.1:8000", "14:03:21 UTC", hint="q quits, arrows scroll"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(console.export_svg(title="flux2 top", unique_id="top") + "\n")


def _read(url: str) -> Fleet:
    async def read() -> Fleet:
        async with AsyncClient(url) as client:
            return await read_fleet(client, tenant=None)

    return asyncio.run(read())


if __name__ == "__main__":
    typer.run(main)
