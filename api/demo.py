"""`flux2 demo`: the main job from request to picture on this host, with real parts and a tiny FLUX.2."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from api.client import Client
from shared.errors import Flux2Error
from shared.request import EXAMPLE
from shared.settings import Settings
from shared.stack import DEMO_ADAPTER, Stack

_JOB_S = 600.0


class DemoFailed(Flux2Error):
    """A demonstration job did not succeed."""

    code = "demo_failed"


def request(multiplier: float) -> dict[str, Any]:
    """The reference API's example request with the demonstration adapter; only the multiplier varies."""
    return {**copy.deepcopy(EXAMPLE), "loras": [{"path": DEMO_ADAPTER, "network_multiplier": multiplier}]}


def run(console: Console, output: Path) -> None:
    """Start everything in a temporary folder, render the request at two multipliers, and stop everything.

    Raises:
        DemoFailed: a job ended otherwise than succeeded.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flux2-demo-") as data:
        # Defaults only: what is configured for a deployment does not apply.
        stack = Stack(Path(data), Settings.model_construct(), inherit=False)
        with console.status("starting Redis, S3, the API and one worker with a tiny FLUX.2"):
            stack.start()
        try:
            console.print(f"API {stack.url}, Redis {stack.servers.redis.url}, S3 {stack.servers.s3.url}")
            with Client(stack.url) as client:
                for multiplier in (1.0, 0.5):
                    _render(console, stack, client, output, multiplier)
        finally:
            with console.status("stopping"):
                stack.stop()
    console.print(f"Done in {time.monotonic() - started:.0f} s; the images are in {output}/. Nothing is left running.")


def _render(console: Console, stack: Stack, client: Client, output: Path, multiplier: float) -> None:
    job = client.submit(request(multiplier))
    console.rule(f"network_multiplier {multiplier:g}: request {job['request_id']}")
    for warning in job["warnings"]:
        console.print(f"warning: {warning}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("in_queue", total=1.0)

        def show(status: dict[str, Any]) -> None:
            stack.check()
            bar.update(task, description=_stage(status), completed=status["progress"])

        status = client.wait(job["request_id"], timeout_s=_JOB_S, on_status=show)
    if status["status"] != "succeeded":
        raise DemoFailed(f"request {job['request_id']} {status['status']}: {status['error']}")
    for image in client.result(job["request_id"])["outputs"]["images"]:
        file = output / f"multiplier-{multiplier:g}-{image['index']}.{image['format']}"
        file.write_bytes(client.download(image["url"]))
        _describe(console, image, file)


def _stage(status: dict[str, Any]) -> str:
    running = status["items"][0]["progress"]
    return f"{status['status']} {running['stage']}" if running else status["status"]


def _describe(console: Console, image: dict[str, Any], file: Path) -> None:
    pipeline = image["pipeline"]
    console.print(
        f"image    {file}: {image['width']}x{image['height']} {image['format']}, {image['size_bytes']:,} bytes"
    )
    console.print(f"url      {image['url']}", soft_wrap=True)
    console.print("timings  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in image["timings"].items()))
    console.print(f"pipeline {pipeline['engine']}, {pipeline['precision']}, adapter {pipeline['change']}")
    for adapter in image["adapters"]:
        console.print(
            f"adapter  {adapter['path']} x {adapter['multiplier']:g}: {adapter['layers_touched']} of "
            f"{adapter['layers_total']} layers, ranks {adapter['ranks']}, sha256 {adapter['sha256'][:12]}"
        )
