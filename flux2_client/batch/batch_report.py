"""Report how far a batch is: JSON lines, a line now and then for a pipe, or a progress bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flux2_client.batch.answer_line import Answer
from flux2_client.batch.progress import BatchProgress
from flux2_client.report import print_json, print_message
from shared.console import LineConsole
from shared.plurals import counted

# Of thousands of lines that fail for the same reason, these say it.
_SHOWN_FAILURES: Final = 5
_PIPE_EVERY_S: Final = 10.0
_JSON_EVERY_S: Final = 1.0


class BatchReport(Protocol):
    """What a command says while a batch runs."""

    def progressed(self, progress: BatchProgress) -> None: ...

    def ended(self, progress: BatchProgress) -> None: ...


class FailureMessages:
    """Says why the first lines failed.

    Args:
        place: where the answers of the others are.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._count = 0

    def __call__(self, answer: Answer) -> None:
        assert answer.failure is not None
        self._count += 1
        if self._count <= _SHOWN_FAILURES:
            print_message(f"{answer.name}: {answer.failure.code}: {answer.failure.message}")
        elif self._count == _SHOWN_FAILURES + 1:
            print_message(f"more lines fail; {self._place} says why")


class _Clock:
    """Says when the next report is due."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s

    def is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._every_s
        return True


class _JsonReport:
    def __init__(self) -> None:
        self._clock = _Clock(_JSON_EVERY_S)

    def progressed(self, progress: BatchProgress) -> None:
        if self._clock.is_due():
            self._print("progress", progress)

    def ended(self, progress: BatchProgress) -> None:
        self._print("ended", progress)

    def _print(self, event: str, progress: BatchProgress) -> None:
        print_json({"event": event, **vars(progress)})


class _LineReport:
    def __init__(self, console: LineConsole) -> None:
        self._console = console
        self._clock = _Clock(_PIPE_EVERY_S)

    def progressed(self, progress: BatchProgress) -> None:
        if self._clock.is_due():
            self._console.print_line(describe_progress(progress))

    def ended(self, progress: BatchProgress) -> None:
        self._console.print_line(describe_end(progress))


class _BarReport:
    def __init__(self, console: LineConsole, bar: Progress, task: TaskID) -> None:
        self._console, self._bar, self._task = console, bar, task

    def progressed(self, progress: BatchProgress) -> None:
        text = describe_progress(progress)
        self._bar.update(self._task, description=text, completed=progress.answered, total=progress.lines)

    def ended(self, progress: BatchProgress) -> None:
        self._console.print_line(describe_end(progress))


@contextmanager
def open_batch_report(*, as_json: bool) -> Iterator[BatchReport]:
    """Choose the report for stdout."""
    if as_json:
        yield _JsonReport()
        return
    console = LineConsole()
    if not console.is_terminal:
        yield _LineReport(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        yield _BarReport(console, bar, bar.add_task("", total=None))


def describe_progress(progress: BatchProgress) -> str:
    """Return e.g. "1,200 of 10,000 lines, 3 failed, 100 under way"."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return f"{progress.answered:,} of {_count_lines(progress.lines)}{failed}, {progress.in_flight:,} under way"


def describe_end(progress: BatchProgress) -> str:
    """Return e.g. "9,997 of 10,000 lines succeeded, 3 failed"."""
    parts = [f"{progress.succeeded:,} of {_count_lines(progress.lines)} succeeded"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.earlier:
        parts.append(f"{progress.earlier:,} answered by an earlier run")
    return ", ".join(parts)


def _count_lines(lines: int | None) -> str:
    return counted(lines or 0, "line", "lines") if lines is None or lines < 1000 else f"{lines:,} lines"
