"""Report what happens to jobs: JSON lines, lines for a pipe, or a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flux2_client.models import FINAL_STATES, ImageInfo, Job, ReferenceReport, Status, Sweep, SweepStatus, UploadedImage
from shared.console import LineConsole
from shared.plurals import counted
from shared.visible_text import escape_controls


def print_message(text: str) -> None:
    """Print a message for people; stdout holds only the command's output."""
    LineConsole(stderr=True).print_line(text)


def print_json(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def describe_eta(status: Status | SweepStatus) -> str:
    """Return the time that a job or a sweep has left, with its range if the API states one."""
    about = f"about {status.eta_s:.0f} s"
    if status.eta_range_s is None:
        return about
    low_s, high_s = status.eta_range_s
    return f"{about} ({low_s:.0f} to {high_s:.0f})"


class Report(Protocol):
    """What a command says while jobs run."""

    def uploaded(self, image: UploadedImage, path: Path) -> None: ...

    def submitted(self, job: Job | Sweep, *, images: int) -> None: ...

    def progressed(self, status: Status | SweepStatus) -> None: ...

    def saved(self, image: ImageInfo, path: Path) -> None: ...

    def ended(self, status: Status | SweepStatus) -> None: ...


class JsonReport:
    """One JSON object per event."""

    def __init__(self) -> None:
        self._changes = _Changes()

    def uploaded(self, image: UploadedImage, path: Path) -> None:
        print_json({"event": "uploaded", "file": str(path), **image.model_dump(mode="json")})

    def submitted(self, job: Job | Sweep, *, images: int) -> None:
        print_json({"event": "submitted", **job.model_dump(mode="json"), "images": images})

    def progressed(self, status: Status | SweepStatus) -> None:
        if self._changes.is_new(status):
            eta = {"eta_s": status.eta_s, "eta_range_s": status.eta_range_s}
            print_json({"event": "progress", **_summary(status), "progress": status.progress, **eta})

    def saved(self, image: ImageInfo, path: Path) -> None:
        names = ("index", "seed", "prompt", "width", "height", "sha256", "size_bytes", "warnings")
        values = {name: getattr(image, name) for name in names}
        values["references"] = [reference.model_dump(mode="json") for reference in image.references]
        print_json({"event": "image", "request_id": image.request_id, "file": str(path), **values})

    def ended(self, status: Status | SweepStatus) -> None:
        print_json({"event": "ended", **_summary(status), "error": _error(status)})


class LineReport:
    """One line of text per event."""

    def __init__(self) -> None:
        self._changes = _Changes()

    def uploaded(self, image: UploadedImage, path: Path) -> None:
        _print_line(describe_upload(image, path))
        for warning in image.warnings:
            print_message(f"warning: {path}: {warning}")

    def submitted(self, job: Job | Sweep, *, images: int) -> None:
        _print_line(f"submitted {job.id}: {count_images(images)}")

    def progressed(self, status: Status | SweepStatus) -> None:
        if self._changes.is_new(status) and not status.has_ended:
            eta = f", {describe_eta(status)} left" if status.eta_s is not None else ""
            _print_line(f"{status.status} {status.id}: {_counts(status)}{eta}")

    def saved(self, image: ImageInfo, path: Path) -> None:
        _print_line(f"saved {path}")
        for reference in image.references:
            _print_line(f"  {describe_reference(reference)}")
        for warning in image.warnings:
            print_message(f"warning: image {image.index}: {warning}")

    def ended(self, status: Status | SweepStatus) -> None:
        _print_line(f"{status.status} {status.id}: {_counts(status)}{_reason(status)}")


class BarReport:
    """One bar for all images of all jobs, and a line for each job that did not succeed."""

    def __init__(self, console: LineConsole, bar: Progress, task: TaskID) -> None:
        self._console, self._bar, self._task = console, bar, task
        self._images: dict[str, int] = {}
        self._rendered: dict[str, int] = {}
        self._steps: dict[str, float] = {}
        self._saved = 0
        self._references: set[str] = set()

    def uploaded(self, image: UploadedImage, path: Path) -> None:
        self._console.print_line(describe_upload(image, path))
        for warning in image.warnings:
            self._console.print_line(f"warning: {path}: {warning}")

    def submitted(self, job: Job | Sweep, *, images: int) -> None:
        self._images[job.id] = images
        self._console.print_line(f"{job.kind} {job.id}: {count_images(images)}")
        self._draw()

    def progressed(self, status: Status | SweepStatus) -> None:
        self._images[status.id] = status.images
        self._rendered[status.id] = status.count("succeeded")
        self._steps[status.id] = status.progress * status.images
        self._draw()

    def saved(self, image: ImageInfo, path: Path) -> None:
        self._saved += 1
        for reference in image.references:
            # Each once: the images of a batch often share them.
            if (text := describe_reference(reference)) not in self._references:
                self._references.add(text)
                self._console.print_line(f"image {image.index} of {image.request_id}: {text}")
        for warning in image.warnings:
            self._console.print_line(f"warning: image {image.index}: {warning}")
        self._draw()

    def ended(self, status: Status | SweepStatus) -> None:
        if status.status != "succeeded":
            self._console.print_line(f"{status.kind} {status.id} {status.status}: {_counts(status)}{_reason(status)}")

    def _draw(self) -> None:
        saved = f", {self._saved} saved" if self._saved else ""
        text = f"{sum(self._rendered.values())} of {count_images(sum(self._images.values()))}{saved}"
        self._bar.update(
            self._task, description=text, completed=sum(self._steps.values()), total=sum(self._images.values())
        )


@contextmanager
def open_report(*, as_json: bool) -> Iterator[Report]:
    """Choose the report for stdout."""
    if as_json:
        yield JsonReport()
        return
    console = LineConsole()
    if not console.is_terminal:
        yield LineReport()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        yield BarReport(console, bar, bar.add_task("in_queue", total=None))


class _Changes:
    """Notices polls that say something new: another state, or another finished image."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int]] = {}

    def is_new(self, status: Status | SweepStatus) -> bool:
        now = (status.status, sum(map(status.count, FINAL_STATES)))
        last = self._last.get(status.id)
        self._last[status.id] = now
        return now != last


def _summary(status: Status | SweepStatus) -> dict[str, Any]:
    return {
        f"{status.kind}_id": status.id,
        "status": status.status,
        "images": status.images,
        **{state: status.count(state) for state in ("succeeded", "failed", "canceled")},
    }


def _counts(status: Status | SweepStatus) -> str:
    parts = [f"{status.count('succeeded')} of {count_images(status.images)}"]
    parts += [f"{status.count(state)} {state}" for state in ("failed", "canceled") if status.count(state)]
    return ", ".join(parts)


def _error(status: Status | SweepStatus) -> str | None:
    # The jobs of a sweep have errors of their own.
    return status.error if isinstance(status, Status) else None


def _reason(status: Status | SweepStatus) -> str:
    error = _error(status)
    return f": {error}" if error else ""


def describe_upload(image: UploadedImage, path: Path) -> str:
    """Return one line about a file that was uploaded."""
    size, used = f"{image.width}x{image.height}", f"{image.effective_width}x{image.effective_height}"
    return f"uploaded {path}: {image.path}, {size}" + (f", used at {used}" if used != size else "")


def describe_reference(reference: ReferenceReport) -> str:
    """Return one line about a reference image of an image."""
    return f"reference {reference.slot}: {reference.path}, used at {reference.width}x{reference.height}"


def count_images(count: int) -> str:
    """Return e.g. "2 images"."""
    return counted(count, "image", "images")


def _print_line(text: str) -> None:
    sys.stdout.write(escape_controls(text) + "\n")
    sys.stdout.flush()
