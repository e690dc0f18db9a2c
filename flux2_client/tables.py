"""Print answers in columns."""

from __future__ import annotations

from collections.abc import Sequence

from flux2_client.async_client import AsyncImage
from flux2_client.models import Adapter, AdapterFile, JobLine, Result, Status
from shared.console import LineConsole


def print_lines(rows: Sequence[Sequence[str]]) -> None:
    """Print one line for each row, in columns and never folded, so that ids and paths can be copied."""
    console = LineConsole()
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        console.print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_status(status: Status) -> None:
    rows = [
        ("request", status.request_id),
        ("status", status.status),
        ("model", status.model),
        ("progress", f"{status.progress:.0%}"),
        ("created", status.created_at),
        ("finished", status.finished_at or "-"),
    ]
    if status.queue_position is not None:
        rows.append(("queued before it", str(status.queue_position)))
    if status.eta_s is not None and not status.has_ended:
        rows.append(("seconds left", f"{status.eta_s:.0f}"))
    rows += [("warning", warning) for warning in status.warnings]
    for item in status.items:
        stage = f" {item.progress.stage}, step {item.progress.step} of {item.progress.steps}" if item.progress else ""
        reason = f" {item.error.code}: {item.error.message}" if item.error else ""
        rows.append((f"image {item.index}", f"{item.status}{stage}{reason}"))
    LineConsole().print_rows(rows)


def print_result(result: Result[AsyncImage]) -> None:
    console = LineConsole()
    console.print_line(f"{result.request_id} {result.status}")
    for image in result.images:
        console.print_line(f"image {image.index}  {image.width}x{image.height}  seed {image.seed}  {image.prompt}")
        console.print_line(f"  {image.url}")
    for failure in result.errors:
        console.print_line(f"image {failure.index}  failed  {failure.code}: {failure.message}")


def print_jobs(jobs: Sequence[JobLine]) -> None:
    print_lines([(job.request_id, job.status, job.model, job.created_at, _counts(job)) for job in jobs])


def print_adapter_files(files: Sequence[AdapterFile]) -> None:
    print_lines([(file.path, f"{file.size_bytes:,} bytes", file.modified_at) for file in files])


def print_adapter(adapter: Adapter) -> None:
    rows = []
    for name, value in adapter.model_dump(mode="json").items():
        text = ", ".join(f"{count} {key}" for key, count in value.items()) if isinstance(value, dict) else value
        text = ", ".join(map(str, text)) if isinstance(text, list) else text
        rows.append((name.replace("_", " "), "-" if text in (None, "") else str(text)))
    LineConsole().print_rows(rows)


def _counts(job: JobLine) -> str:
    return ", ".join(f"{count} {state}" for state, count in job.items.items() if count)
