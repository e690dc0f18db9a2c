"""`flux2 replay`: render a training config's previews and compare them with the trainer's own pictures."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flux2_client.client import Client
from flux2_client.contact_sheet import ContactSheet
from flux2_client.models import Replay, Status
from flux2_client.outages import PATIENCE_S, RetryMessages
from flux2_client.profiles import Target
from flux2_client.replay_submission import submit_config
from flux2_client.similarity import SAMPLE_NAMES, Similarity, compare_images, find_trainer_samples
from shared.console import LineConsole
from shared.errors import ReplayFailed
from shared.outputs import output_folder
from shared.plurals import counted
from shared.reference_image import prepare, read_rgb

_POLL_S = 1.0
# Names of a message's list.
_SHOWN = 3
_SHEET = "contact-sheet.png"


def replay_client(console: LineConsole, target: Target) -> Client:
    """Open a client that waits for the API as long as for a job, and prints why."""
    report = RetryMessages(console.print_line)
    return Client(target.url, api_key=target.api_key, retry_s=PATIENCE_S, on_failure=report)


@dataclass(frozen=True)
class _Rendering:
    """The image that reproduces one sample, and the sha256 of its reference images in the order of their slots."""

    data: bytes
    references: tuple[str, ...]

    @property
    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data)).convert("RGB")

    def find_references(self, images: Mapping[str, Image.Image]) -> list[Image.Image | None]:
        return [images.get(sha256) for sha256 in self.references]


def run_replay(
    console: LineConsole,
    client: Client,
    config: Path,
    *,
    lora: str | None,
    samples: Path | None,
    output: Path,
    image_folders: Sequence[Path] = (),
) -> list[Similarity]:
    """Submit the config's samples, save the images, and compare them with the trainer's pictures.

    Args:
        lora: adapter under the adapter root; None selects the trainer's `{name}/{name}.safetensors`.
        samples: folder of the trainer's sample images; those of the last step are compared. None compares nothing.
        image_folders: where to look for reference images, see `find_images`.

    Returns:
        One comparison for each of the trainer's pictures that has the same size as its rendering.

    Raises:
        ConfigRefused, ConfigImagesNotFound: see `submit_config`.
        ApiError: the API refuses the config, or cannot be reached for longer than the client allows.
        ReplayFailed: a job failed or was canceled.
        NoSamples: `samples` holds no picture by the trainer.
        OutputRefused: `output` cannot be created.
    """
    # Both folders are checked before anything is rendered: a mistake then costs no GPU time.
    trainer_files = find_trainer_samples(samples) if samples else {}
    with output_folder(output):
        submitted = submit_config(console, client, config, lora=lora, folders=image_folders)
        for warning in submitted.replay.warnings:
            console.print_line(f"warning: {warning}")
        renderings = _render(console, client, submitted.replay)
        for index, rendering in enumerate(renderings):
            (output / f"sample-{index}.png").write_bytes(rendering.data)
        console.print_line(f"{counted(len(renderings), 'image is', 'images are')} in {output}/")
        references = read_references(submitted.images)
        if trainer_files:
            return _compare(console, renderings, trainer_files, references=references, output=output)
        if any(rendering.references for rendering in renderings):
            sheet = _open_sheet(renderings, samples=len(renderings))
            for rendering in renderings:
                sheet.add(rendering.picture, references=rendering.find_references(references))
            sheet.draw().save(output / _SHEET)
            console.print_line(f"contact sheet (reference images, ours): {output / _SHEET}")
        return []


def _render(console: LineConsole, client: Client, replay: Replay) -> list[_Rendering]:
    """Wait for every job of the replay; return the images in the order of the config's samples."""
    jobs = replay.requests
    images: dict[str, list[_Rendering]] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        for number, job in enumerate(jobs):
            task = bar.add_task(f"request {number + 1} of {len(jobs)}", total=1.0)

            # `task` is bound as a default: a closure would see the next task of the loop.
            def show_progress(status: Status, task: Any = task) -> None:
                bar.update(task, completed=status.progress)

            status = client.wait(job.request_id, timeout_s=PATIENCE_S, poll_s=_POLL_S, on_status=show_progress)
            if status.status != "succeeded":
                raise ReplayFailed(f"request {job.request_id} {status.status}: {status.error}")
            # Now, because the URLs are valid for an hour and the other jobs may take longer.
            found = client.result(job.request_id).images
            images[job.request_id] = [
                _Rendering(image.bytes(), tuple(reference.sha256 for reference in image.references)) for image in found
            ]
            for image in found:
                for warning in image.warnings:
                    console.print_line(f"warning: request {number + 1}, image {image.index}: {warning}")
    return [images[sample.request_id][sample.index] for sample in replay.samples]


def _compare(
    console: LineConsole,
    renderings: Sequence[_Rendering],
    trainer_files: Mapping[int, Path],
    *,
    references: Mapping[str, Image.Image],
    output: Path,
) -> list[Similarity]:
    for line in _describe_unpaired(len(renderings), trainer_files):
        console.print_line(line)
    rows = [("sample", "mean", "max", "PSNR dB", "file")]
    sheet, similarities = _open_sheet(renderings, samples=len(trainer_files)), []
    for index, path in sorted(trainer_files.items()):
        if index >= len(renderings):
            continue
        ours = renderings[index].picture
        with Image.open(path) as opened:
            theirs = opened.convert("RGB")
        if ours.size != theirs.size:
            rows.append((str(index), f"sizes differ: {ours.size} and {theirs.size}", "", "", path.name))
            continue
        similarity = compare_images(ours, theirs)
        numbers = (f"{similarity.mean:.2f}", str(similarity.maximum), f"{similarity.psnr_db:.1f}")
        rows.append((str(index), *numbers, path.name))
        sheet.add(ours, theirs, renderings[index].find_references(references))
        similarities.append(similarity)
    console.print_rows(rows)
    if similarities:
        sheet.draw().save(output / _SHEET)
        columns = "reference images, " if any(rendering.references for rendering in renderings) else ""
        console.print_line(f"contact sheet ({columns}trainer's, ours, difference): {output / _SHEET}")
    return similarities


def read_references(files: Mapping[str, Path]) -> dict[str, Image.Image]:
    """Return the reference images as the model reads them, by their files' sha256.

    A file that was removed or changed while its sample was rendered is left out.
    """
    found = {}
    for sha256, path in files.items():
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                found[sha256] = prepare(read_rgb(data))
    return found


def _open_sheet(renderings: Sequence[_Rendering], *, samples: int) -> ContactSheet:
    most = max(len(rendering.references) for rendering in renderings)
    return ContactSheet(samples=samples, references=most)


def _describe_unpaired(count: int, trainer_files: Mapping[int, Path]) -> Iterator[str]:
    """Say which of the config's samples have no picture by the trainer, and which pictures have no sample."""
    # The folder may hold pictures of an earlier, longer config.
    beyond = [path.name for index, path in sorted(trainer_files.items()) if index >= count]
    missing = [index for index in range(count) if index not in trainer_files]
    if beyond:
        yield (
            f"{len(beyond)} of the trainer's pictures are not compared, because the config has {count} samples, from 0 "
            f"to {count - 1}: {_shorten(beyond)}"
        )
    if missing:
        step = next(iter(trainer_files.values())).stem.split("_")[-2]
        yield (
            f"{len(missing)} of the config's {count} samples have no picture at the trainer's last step: "
            f"{_shorten([f'*_{step}_{index}.*' for index in missing])}; {SAMPLE_NAMES}"
        )


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
