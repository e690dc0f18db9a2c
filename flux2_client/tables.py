"""Print answers in columns."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from flux2_client.async_client import AsyncImage
from flux2_client.fleet import Fleet
from flux2_client.fleet_view import QUEUE_COLUMNS, SLOT_COLUMNS, describe_fleet, queue_cells, slot_cells
from flux2_client.models import (
    Adapter,
    AdapterFile,
    AdapterReport,
    Answer,
    DeletedUploads,
    JobLine,
    Result,
    Status,
    SweepLine,
    SweepStatus,
    UploadedAdapter,
    Usage,
    UsageAmounts,
)
from flux2_client.report import count_images, describe_eta, describe_reference, print_json, print_message
from shared.adapters.inspection_text import describe_rows, describe_scale
from shared.console import LineConsole
from shared.errors import ApiError, ApiUnreachable

AnswerT = TypeVar("AnswerT", bound=Answer)


def print_answer(answer: AnswerT, print_for_people: Callable[[AnswerT], None], *, as_json: bool) -> None:
    """Print an answer as JSON, or in the form for people."""
    if as_json:
        print_json(answer.model_dump(mode="json"))
    else:
        print_for_people(answer)


async def print_each(
    request_ids: Iterable[str],
    ask: Callable[[str], Awaitable[AnswerT]],
    print_for_people: Callable[[AnswerT], None],
    *,
    as_json: bool,
) -> bool:
    """Print the answer about each job; return whether none was refused.

    A refused job, such as a mistyped id, does not keep the others from being asked for.

    Raises:
        ApiUnreachable: the API does not answer; the other jobs are not asked for.
    """
    all_answered = True
    for request_id in request_ids:
        try:
            print_answer(await ask(request_id), print_for_people, as_json=as_json)
        except ApiUnreachable:
            raise
        except ApiError as error:
            print_message(str(error))
            all_answered = False
    return all_answered


async def print_listing(
    lines: AsyncIterable[AnswerT],
    print_for_people: Callable[[Sequence[AnswerT]], None],
    *,
    limit: int = 0,
    as_json: bool,
    empty: str,
) -> None:
    """Print at most `limit` lines, all if it is 0: each JSON line as soon as it is known, columns at the end.

    Args:
        empty: message for people if there is no line.
    """
    # Columns are as wide as their widest cell, which may be the last one.
    rows: list[AnswerT] = []
    count = 0
    async for line in lines:
        if as_json:
            print_json(line.model_dump(mode="json"))
        else:
            rows.append(line)
        count += 1
        if count == limit:
            break
    if rows:
        print_for_people(rows)
    elif not count:
        print_message(empty)


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
        rows.append(("time left", describe_eta(status)))
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
        for adapter in image.adapters:
            console.print_line(f"  adapter: {describe_adapter(adapter)}")
        for reference in image.references:
            console.print_line(f"  {describe_reference(reference)}")
        for warning in image.warnings:
            console.print_line(f"  warning: {warning}")
    for failure in result.errors:
        console.print_line(f"image {failure.index}  failed  {failure.code}: {failure.message}")


def print_jobs(jobs: Sequence[JobLine]) -> None:
    LineConsole().print_aligned(
        [(job.request_id, job.status, job.model, job.created_at, _describe_counts(job.items)) for job in jobs]
    )


def print_sweep(status: SweepStatus) -> None:
    rows = [
        ("sweep", status.sweep_id),
        ("status", status.status),
        ("model", status.model),
        ("images", _describe_counts(status.counts)),
        ("progress", f"{status.progress:.0%}"),
        ("created", status.created_at),
        ("finished", status.finished_at or "-"),
    ]
    if status.eta_s is not None and not status.has_ended:
        rows.append(("time left", describe_eta(status)))
    rows += [("warning", warning) for warning in status.warnings]
    for job in status.jobs:
        multiplier = "" if job.multiplier is None else f" x {job.multiplier:g}"
        rows.append((f"request {job.request_id}", f"{job.status}  {job.checkpoint or ''}{multiplier}".rstrip()))
    LineConsole().print_rows(rows)


def print_sweeps(sweeps: Sequence[SweepLine]) -> None:
    LineConsole().print_aligned(
        [(each.sweep_id, each.status, each.model, each.created_at, _describe_counts(each.counts)) for each in sweeps]
    )


def print_canceled(status: Status | SweepStatus) -> None:
    LineConsole().print_aligned([(status.id, status.status, f"{count_images(status.count('succeeded'))} finished")])


def print_webhook(status: Status) -> None:
    state = "no webhook" if status.webhook is None else f"webhook {status.webhook.state}"
    LineConsole().print_aligned([(status.request_id, status.status, state)])


def print_adapter_files(files: Sequence[AdapterFile]) -> None:
    LineConsole().print_aligned([(file.path, f"{file.size_bytes:,} bytes", file.modified_at) for file in files])


def print_upload(upload: UploadedAdapter) -> None:
    # Only the path, so that a shell's variable can take it.
    LineConsole().print_line(upload.path)


def print_deleted(uploads: DeletedUploads) -> None:
    for path in uploads.deleted:
        LineConsole().print_line(f"deleted {path}")


def print_adapter(adapter: Adapter) -> None:
    """Print the facts as `flux2 inspect` does."""
    LineConsole().print_rows(describe_rows(adapter.model_dump(mode="json")))


def print_usage(usage: Usage) -> None:
    """Print a line for each group under a header, and a last line with the sum."""
    amounts = ["images", "megapixel-steps", "GPU s", "wasted GPU s"]
    if usage.currency:
        amounts.append(usage.currency)
    rows = [(*usage.group_by, *amounts)]
    for line in usage.data:
        rows.append((*(str(getattr(line, column)) for column in usage.group_by), *_amounts(line, usage.currency)))
    rows.append((*["total", *[""] * (len(usage.group_by) - 1)], *_amounts(usage.total, usage.currency)))
    LineConsole().print_rows(rows)
    print_message(f"{usage.first_day} to {usage.last_day}, days in UTC")


def print_fleet(fleet: Fleet) -> None:
    """Print a summary, a line for each slot, and the queue by tenant and adapters."""
    console = LineConsole()
    console.print_line(describe_fleet(fleet))
    if fleet.slots:
        console.print_rows([SLOT_COLUMNS, *map(slot_cells, fleet.slots)])
    if lines := fleet.lines_by_tenant():
        console.print_rows([QUEUE_COLUMNS, *map(queue_cells, lines)])


def _amounts(used: UsageAmounts, currency: str | None) -> list[str]:
    cells = [f"{used.images:,}", *(f"{value:,.3f}" for value in (used.megapixel_steps, used.gpu_s, used.wasted_gpu_s))]
    return [*cells, used.cost or "-"] if currency else cells


def describe_adapter(adapter: AdapterReport) -> str:
    """Return one line about an adapter of an image."""
    # An API of an earlier version states no scale.
    known = bool(adapter.scale_sources) or adapter.scale_range is not None
    scale = f"scale {describe_scale(adapter.scale_range, adapter.scale_sources)}, " if known else ""
    return (
        f"{adapter.path} x {adapter.multiplier:g}: {adapter.layers_touched} of {adapter.layers_total} layers, "
        f"ranks {', '.join(map(str, adapter.ranks)) or '-'}, {scale}sha256 {adapter.sha256[:12]}"
    )


def _describe_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)
