"""`flux2 demo`: render the example request from HTTP call to image file on this host, with the demonstration model.

Redis, S3, the API, the worker and the client are real; only the base model is tiny.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flux2_client.client import Client, Image
from flux2_client.models import Status
from flux2_client.report import describe_reference
from flux2_client.tables import describe_adapter
from shared.console import LineConsole
from shared.demo_model import ABOUT, DEMO_ADAPTER, DRAWN_PX, PROMPTS
from shared.errors import DemoFailed
from shared.local.stack import Stack
from shared.outputs import make_output_folder
from shared.request import EXAMPLE_REQUEST
from shared.settings import Settings

#: Width and height of the images in the reference API's example request.
EXAMPLE_PX = 1024

_JOB_TIMEOUT_S = 600.0


def demo_request(multiplier: float, *, adapter: str = DEMO_ADAPTER, size_px: int = EXAMPLE_PX) -> dict[str, Any]:
    """Return the reference API's example request with the demonstration adapter at this multiplier.

    Args:
        adapter: its address; by default, its path under the adapter root.
    """
    request = copy.deepcopy(EXAMPLE_REQUEST)
    for prompt in request["prompts"]:
        prompt |= {"width": size_px, "height": size_px}
    return {**request, "loras": [{"path": adapter, "network_multiplier": multiplier}]}


def run_demo(console: LineConsole, output: Path, *, size_px: int = EXAMPLE_PX) -> None:
    """Start the whole service in a temporary folder, render three jobs, save their images and stop everything.

    Args:
        size_px: width and height of the example request's images; the batch always has the model's best size.

    Raises:
        OutputRefused: `output` cannot be created.
        ServerFailed: a server did not start, or ended during the demonstration.
        DemoFailed: a job failed or was canceled.
    """
    started = time.monotonic()
    # Before the servers start, so that a mistyped path fails at once and not after a minute of rendering.
    make_output_folder(output)
    with tempfile.TemporaryDirectory(prefix="flux2-demo-") as data:
        # Built from defaults only: FLUX2_* variables and a .env belong to a deployment, and the demo must not touch it.
        stack = Stack(Path(data), Settings.model_construct(), inherit=False)
        with console.status("starting Redis, S3, the API and one worker with the demonstration model"):
            stack.start()
        try:
            console.print(ABOUT)
            console.print_line(f"API {stack.url}, Redis {stack.servers.redis.url}, S3 {stack.servers.s3.url}")
            # An API that ended does not come back, so its calls are not repeated.
            with Client(stack.url, on_failure=lambda _: stack.raise_if_ended()) as client:
                # As from another computer: API and worker share no folder with whoever has the file.
                uploaded = client.upload_adapter(stack.demo_adapter, name=stack.demo_adapter.name)
                console.print_line(f"uploaded {stack.demo_adapter.name}: {uploaded.path}")
                for name, body in _jobs(uploaded.path, size_px):
                    _render(console, stack, client, output=output, name=name, body=body)
        finally:
            with console.status("stopping"):
                stack.stop()
    console.print_line(
        f"Done in {time.monotonic() - started:.0f} s; the images are in {output}/. Nothing is left running."
    )


def _jobs(adapter: str, size_px: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and request of each job: a batch at the size that the model draws best, then the example twice."""
    prompts = [{"prompt": prompt, "width": DRAWN_PX, "height": DRAWN_PX} for prompt in PROMPTS]
    yield "batch", {"model": EXAMPLE_REQUEST["model"], "prompts": prompts, "loras": []}
    # Two multipliers of one adapter: the second job shows a swap in a warm worker.
    for multiplier in (1.0, 0.5):
        yield f"multiplier-{multiplier:g}", demo_request(multiplier, adapter=adapter, size_px=size_px)


def _render(
    console: LineConsole, stack: Stack, client: Client, *, output: Path, name: str, body: dict[str, Any]
) -> None:
    job = client.submit(body)
    console.rule(f"{name}: request {job.request_id}")
    for warning in job.warnings:
        console.print_line(f"warning: {warning}")
    status = _wait(console, stack, client, job.request_id)
    if status.status != "succeeded":
        raise DemoFailed(f"request {job.request_id} {status.status}: {status.error}")
    images = client.result(job.request_id).images
    for image in images:
        file = image.save(output / f"{name}-{image.index}.{image.format}")
        size = f"{image.width}x{image.height} {image.format}, {image.size_bytes:,} bytes"
        console.print_line(f"image    {file}: {size}: {image.prompt}")
    _print_report(console, images[-1])


def _wait(console: LineConsole, stack: Stack, client: Client, request_id: str) -> Status:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("in_queue", total=1.0)

        def show_progress(status: Status) -> None:
            # Otherwise the end of a server would be noticed only at the job's timeout.
            stack.raise_if_ended()
            bar.update(task, description=_stage(status), completed=status.progress)

        return client.wait(request_id, timeout_s=_JOB_TIMEOUT_S, on_status=show_progress)


def _stage(status: Status) -> str:
    running = next((item.progress for item in status.items if item.progress), None)
    return f"{status.status} {running.stage}" if running else status.status


def _print_report(console: LineConsole, image: Image) -> None:
    """Print an image's URL, timings, pipeline and adapters."""
    console.print_line(f"url      {image.url}")
    console.print_line("timings  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in image.timings.items()))
    console.print_line(f"pipeline {image.pipeline.engine}, {image.pipeline.precision}, adapter {image.pipeline.change}")
    for adapter in image.adapters:
        console.print_line(f"adapter  {describe_adapter(adapter)}")
    for reference in image.references:
        console.print_line(describe_reference(reference))
