"""`flux2 replay`: render a training config's previews and hold them against the trainer's own pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flux2_client.client import Client
from flux2_client.similarity import Similarity, compare, contact_sheet, trainer_samples
from shared.errors import ConfigRefused, ReplayFailed
from shared.outputs import make_folder

_JOB_S = 86_400.0


def run(
    console: Console, client: Client, config: Path, *, lora: str | None, samples: Path | None, output: Path
) -> list[Similarity]:
    """Submit the config's samples, save the images, and compare them where the trainer's are given.

    Args:
        samples: folder of the trainer's sample images; the last step's are taken.

    Raises:
        ConfigRefused: the file is no text.
        ApiError: the API refuses the config, or cannot be reached.
        ReplayFailed: a request failed or was canceled.
        NoSamples: `samples` holds none.
        OutputRefused: `output` cannot be made.
    """
    try:
        text = config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigRefused(f"{config}: not text in UTF-8: {error.reason} at byte {error.start}") from error
    theirs = trainer_samples(samples) if samples else {}
    make_folder(output)
    replay = client.replay(text, lora=lora)
    for warning in replay["warnings"]:
        console.print(f"warning: {warning}")
    images = _render(console, client, replay)
    for index, data in enumerate(images):
        (output / f"sample-{index}.png").write_bytes(data)
    console.print(f"{len(images)} images are in {output}/")
    return _compare(console, images, theirs, output) if theirs else []


def _render(console: Console, client: Client, replay: dict[str, Any]) -> list[bytes]:
    jobs = replay["requests"]
    images: dict[str, Any] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        for number, job in enumerate(jobs):
            task = bar.add_task(f"request {number + 1} of {len(jobs)}", total=1.0)

            def show(status: dict[str, Any], task: Any = task) -> None:
                bar.update(task, completed=status["progress"])

            status = client.wait(job["request_id"], timeout_s=_JOB_S, on_status=show)
            if status["status"] != "succeeded":
                raise ReplayFailed(f"request {job['request_id']} {status['status']}: {status['error']}")
            images[job["request_id"]] = client.result(job["request_id"])["outputs"]["images"]
    return [client.download(images[sample["request_id"]][sample["index"]]["url"]) for sample in replay["samples"]]


def _compare(console: Console, images: list[bytes], theirs: dict[int, Path], output: Path) -> list[Similarity]:
    table = Table("sample", "mean", "max", "PSNR dB", "file")
    pairs, found = [], []
    for index, path in sorted(theirs.items()):
        if index >= len(images):
            continue
        with Image.open(path) as opened:
            pair = (Image.open(io.BytesIO(images[index])).convert("RGB"), opened.convert("RGB"))
        if pair[0].size != pair[1].size:
            table.add_row(str(index), f"{pair[0].size} against {pair[1].size}", "", "", path.name)
            continue
        alike = compare(*pair)
        table.add_row(str(index), f"{alike.mean:.2f}", str(alike.maximum), f"{alike.psnr_db:.1f}", path.name)
        pairs.append(pair)
        found.append(alike)
    console.print(table)
    if pairs:
        contact_sheet(pairs).save(output / "contact-sheet.png")
        console.print(f"theirs, ours and the difference side by side: {output / 'contact-sheet.png'}")
    return found
