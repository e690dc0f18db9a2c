"""`flux2 demo`: the main job from request to picture on this host, with real parts and the demonstration model."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flux2_client.client import Client
from shared.demo_model import ABOUT, DEMO_ADAPTER, DRAWN_PX, PROMPTS
from shared.errors import DemoFailed
from shared.local.stack import Stack
from shared.outputs import make_folder
from shared.request import EXAMPLE
from shared.settings import Settings

_JOB_S = 600.0


def request(multiplier: float) -> dict[str, Any]:
    """The reference API's example request with the demonstration adapter; only the multiplier varies."""
    return {**copy.deepcopy(EXAMPLE), "loras": [{"path": DEMO_ADAPTER, "network_multiplier": multiplier}]}


def run(console: Console, output: Path) -> None:
    """Start everything in a temporary folder, render a batch and the request at two multipliers, and stop everything.

    Raises:
        OutputRefused: `output` cannot be made.
        DemoFailed: a job ended otherwise than succeeded.
    """
    started = time.monotonic()
    make_folder(output)
    with tempfile.TemporaryDirectory(prefix="flux2-demo-") as data:
        # Defaults only: what is configured for a deployment does not apply.
        stack = Stack(Path(data), Settings.model_construct(), inherit=False)
        with console.status("starting Redis, S3, the API and one worker with the demonstration model"):
            stack.start()
        try:
            console.print(ABOUT)
            console.print(f"API {stack.url}, Redis {stack.servers.redis.url}, S3 {stack.servers.s3.url}")
            with Client(stack.url) as client:
                for name, body in _jobs():
                    _render(console, stack, client, output, name, body)
        finally:
            with console.status("stopping"):
                stack.stop()
    console.print(f"Done in {time.monotonic() - started:.0f} s; the images are in {output}/. Nothing is left running.")


def _jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """A batch at the size that the model draws best, then the example."""
    prompts = [{"prompt": prompt, "width": DRAWN_PX, "height": DRAWN_PX} for prompt in PROMPTS]
    yield "batch", {"model": EXAMPLE["model"], "prompts": prompts, "loras": []}
    for multiplier in (1.0, 0.5):
        yield f"multiplier-{multiplier:g}", request(multiplier)


def _render(console: Console, stack: Stack, client: Client, output: Path, name: str, body: dict[str, Any]) -> None:
    job = client.submit(body)
    console.rule(f"{name}: request {job['request_id']}")
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
    images = client.result(job["request_id"])["outputs"]["images"]
    for image in images:
        file = output / f"{name}-{image['index']}.{image['format']}"
        file.write_bytes(client.download(image["url"]))
        size = f"{image['width']}x{image['height']} {image['format']}, {image['size_bytes']:,} bytes"
        console.print(f"image    {file}: {size}: {image['prompt']}", highlight=False)
    _describe(console, images[-1])


def _stage(status: dict[str, Any]) -> str:
    running = next((item["progress"] for item in status["items"] if item["progress"]), None)
    return f"{status['status']} {running['stage']}" if running else status["status"]


def _describe(console: Console, image: dict[str, Any]) -> None:
    """Tell of a job's last image how it was made."""
    pipeline = image["pipeline"]
    console.print(f"url      {image['url']}", soft_wrap=True)
    console.print("timings  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in image["timings"].items()))
    console.print(f"pipeline {pipeline['engine']}, {pipeline['precision']}, adapter {pipeline['change']}")
    for adapter in image["adapters"]:
        console.print(
            f"adapter  {adapter['path']} x {adapter['multiplier']:g}: {adapter['layers_touched']} of "
            f"{adapter['layers_total']} layers, ranks {adapter['ranks']}, sha256 {adapter['sha256'][:12]}"
        )
