"""`flux2 demo`: render prompts, edits and the example request from HTTP call to image file on this host.

Redis, S3, the API, the worker and the client are real; only the base model, the demonstration model, is tiny.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flux2_client.client import Client, Image
from flux2_client.models import Status
from flux2_client.report import describe_reference
from flux2_client.result_page import ResultFile, ResultGroup, write_result_page
from flux2_client.tables import describe_adapter
from shared.console import LineConsole
from shared.demo_model import ABOUT, DEMO_ADAPTER, DRAWN_PX, EDITED, EDITS, LABEL, PROMPTS, demo_edit
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
    """Start the whole service in a temporary folder, render four jobs, save their images and stop everything.

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
                page = _Demo(console, stack, client, output).run(size_px=size_px)
        finally:
            with console.status("stopping"):
                stack.stop()
    console.print_line(
        f"Done in {time.monotonic() - started:.0f} s; {page} shows the images in {output}/. Nothing is left running."
    )


@dataclass(frozen=True)
class _Demo:
    """Sends the demonstration's jobs and saves their images."""

    console: LineConsole
    stack: Stack
    client: Client
    output: Path
    groups: list[ResultGroup] = field(default_factory=list)

    def run(self, *, size_px: int) -> Path:
        """Render a batch at the size that the model draws best, edits of one of its pictures, and the example twice.

        Returns:
            A page that shows the images.
        """
        # As from another computer: API and worker share no folder with whoever has the file.
        uploaded = self.client.upload_adapter(self.stack.demo_adapter, name=self.stack.demo_adapter.name)
        self.console.print_line(f"uploaded {self.stack.demo_adapter.name}: {uploaded.path}")
        images = self._render("batch", _request(PROMPTS))
        self._edit(next(image for image in images if image.prompt == EDITED))
        # Two multipliers of one adapter: the second job shows a swap in a warm worker.
        for multiplier in (1.0, 0.5):
            request = demo_request(multiplier, adapter=uploaded.path, size_px=size_px)
            self._render(f"multiplier-{multiplier:g}", request)
        page = self.output / "index.html"
        write_result_page(page, self.groups, title=f"flux2 demo: the {LABEL}")
        return page

    def _edit(self, image: Image) -> None:
        """Upload an image as reference image, render edits of it, and save a sheet of all."""
        uploaded = self.client.upload_image(image.bytes())
        self.console.print_line(f"uploaded reference image: {uploaded.path}")
        edits = self._render("edit", _request(EDITS, adapter=demo_edit(self.stack.model), reference=uploaded.path))
        file = self.output / "edits.png"
        _side_by_side([image.pil(), *(edit.pil() for edit in edits)]).save(file)
        words = ", ".join(f"'{words}'" for words in EDITS)
        self.console.print_line(f"edits    {file}: the reference image, then {words}")

    def _render(self, name: str, body: dict[str, Any]) -> Sequence[Image]:
        """Submit a request, wait for its job, save its images and print a report."""
        console = self.console
        job = self.client.submit(body)
        console.rule(f"{name}: request {job.request_id}")
        for warning in job.warnings:
            console.print_line(f"warning: {warning}")
        status = _wait(console, self.stack, self.client, job.request_id)
        if status.status != "succeeded":
            raise DemoFailed(f"request {job.request_id} {status.status}: {status.error}")
        images = self.client.result(job.request_id).images
        results = [
            ResultFile(image, image.save(self.output / f"{name}-{image.index}.{image.format}")) for image in images
        ]
        self.groups.append(ResultGroup(name, results))
        for image, file in ((result.image, result.file) for result in results):
            size = f"{image.width}x{image.height} {image.format}, {image.size_bytes:,} bytes"
            console.print_line(f"image    {file}: {size}: {image.prompt}")
        # The first image has the swap of adapters and the encoding of references, which later ones reuse.
        _print_report(console, images[0])
        return images


def _request(prompts: Sequence[str], *, adapter: str | None = None, reference: str | None = None) -> dict[str, Any]:
    """Return a request for images of the size that the model draws best.

    Args:
        reference: address of the reference image of every prompt.
    """
    fields: dict[str, Any] = {"width": DRAWN_PX, "height": DRAWN_PX}
    if reference is not None:
        fields["ctrl_img"] = reference
    return {
        "model": EXAMPLE_REQUEST["model"],
        "prompts": [{"prompt": prompt, **fields} for prompt in prompts],
        "loras": [] if adapter is None else [{"path": adapter, "network_multiplier": 1.0}],
    }


def _side_by_side(pictures: Sequence[PillowImage.Image]) -> PillowImage.Image:
    gap = DRAWN_PX // 16
    sheet = PillowImage.new("RGB", (len(pictures) * (DRAWN_PX + gap) - gap, DRAWN_PX), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place * (DRAWN_PX + gap), 0))
    return sheet


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
