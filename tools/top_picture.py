"""Draw the picture of `flux2 top` in docs/operations.md: `python -m tools.top_picture docs/images/top.svg`.

It shows a real service on this host: Redis, the API, and `flux2 worker --simulate 8`, with jobs of three tenants.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from rich.console import Console

from flux2_client.async_client import AsyncClient
from flux2_client.fleet import Fleet, read_fleet
from flux2_client.fleet_view import FleetView
from shared.errors import ApiError
from shared.local.ports import pick_free_port
from shared.local.redis_server import RedisServer

_ADAPTERS = Path(__file__).parent.parent / "worker/model/demo_checkpoint/adapters"
_SLOTS = 8
_STEP_S = 0.3
_START_S, _POLL_S = 60.0, 0.2
# Tenant, file, its name under the adapter root, images and their steps.
_JOBS = (
    ("studio", "sks_robot", "robots/sks_robot_v2", 120, 25),
    ("studio", "neon", "styles/neon_city", 60, 28),
    ("lab", "blueprint", "styles/blueprint", 40, 34),
    ("agency", "neon", "styles/neon_city", 16, 21),
    ("agency", "", "", 8, 18),
)
_WIDTH = 118


def main(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="SVG to write.")],
    after_s: Annotated[float, typer.Option(help="Seconds after which the fleet is shown.")] = 75.0,
) -> None:
    """Run the service for a while, and write what `flux2 top` shows."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flux2-top-")))
        redis = stack.enter_context(RedisServer(root / "redis"))
        port = pick_free_port()
        environment = {
            **os.environ,
            **redis.environment(),
            "FLUX2_API_PORT": str(port),
            "FLUX2_STORAGE_BACKEND": "directory",
            "FLUX2_STORAGE_DIRECTORY": str(root / "objects"),
            "FLUX2_ADAPTERS_ROOT": str(_copy_adapters(root / "adapters")),
            "FLUX2_WORKER_LOCK_DIR": str(root),
            "FLUX2_WORKER_NAME": "gpu",
        }
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(_running(environment, "api"))
        stack.enter_context(_running(environment, "worker", f"--simulate={_SLOTS}", f"--simulated-step-s={_STEP_S}"))
        _wait_until(lambda: len(_read(url).slots) == _SLOTS)
        _submit(url)
        time.sleep(after_s)
        console = Console(record=True, width=_WIDTH, file=io.StringIO())
        console.print(FleetView(_read(url), "http://127.0.0.1:8000", "14:03:21 UTC", hint="q quits, arrows scroll"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(console.export_svg(title="flux2 top", unique_id="top") + "\n")


def _copy_adapters(root: Path) -> Path:
    for _, source, name, *_ in _JOBS:
        if source:
            target = root / f"{name}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_ADAPTERS / f"{source}.safetensors", target)
    return root


@contextmanager
def _running(environment: dict[str, str], *command: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "shared.cli", *command], env=environment)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_until(is_met: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        try:
            if is_met():
                return
            time.sleep(_POLL_S)
        except ApiError:
            # The API has not started.
            time.sleep(_POLL_S)
    raise SystemExit("the service did not start; the lines above say why")


def _submit(url: str) -> None:
    for tenant, _, name, images, steps in _JOBS:
        body = {
            "model": "flux2",
            "prompts": [{"prompt": f"picture {number}", "sample_steps": steps} for number in range(images)],
            "loras": [{"path": f"{name}.safetensors"}] if name else [],
        }
        answer = httpx2.post(f"{url}/v1/inference", json=body, headers={"X-Tenant": tenant}, timeout=60)
        answer.raise_for_status()


def _read(url: str) -> Fleet:
    async def read() -> Fleet:
        async with AsyncClient(url, retry_s=0) as client:
            return await read_fleet(client, tenant=None)

    return asyncio.run(read())


if __name__ == "__main__":
    typer.run(main)
