"""Run a batch file: keep a bounded number of jobs under way, and write each answer when its job has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flux2_client.async_client import AsyncClient
from flux2_client.batch.answer_line import Answer, id_key
from flux2_client.batch.batch_files import BatchFiles, BatchPaths, open_batch
from flux2_client.batch.job_watch import JobWatch
from flux2_client.batch.line_jobs import LineJobs, Ticket
from flux2_client.batch.line_reader import RawLine, count_lines, read_lines
from flux2_client.batch.progress import DEFAULT_IN_FLIGHT, BatchProgress
from flux2_client.batch.request_line import LineFault, RequestLine, fault, parse_line
from shared.errors import CommandError, OutputRefused

# Lines whose bodies are in memory, and answers whose images are.
_SUBMITS: Final = 8
_COLLECTS: Final = 8
# Lines that are read before other work of the event loop gets its turn.
_LINES_PER_TURN: Final = 100

OnProgress = Callable[[BatchProgress], None]
OnFailure = Callable[[Answer], None]


class BatchRun:
    """One run over a batch file.

    Args:
        in_flight: jobs under way at a time.
        on_progress: called after each change.
        on_failure: called with each answer of this run that is an error.
    """

    def __init__(
        self,
        jobs: LineJobs,
        watch: JobWatch,
        files: BatchFiles,
        *,
        in_flight: int,
        on_progress: OnProgress,
        on_failure: OnFailure,
    ) -> None:
        self._jobs = jobs
        self._watch = watch
        self._files = files
        self._places = asyncio.Semaphore(in_flight)
        self._submitting = asyncio.Semaphore(_SUBMITS)
        self._collecting = asyncio.Semaphore(_COLLECTS)
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._progress = BatchProgress()
        # Ends the run after the jobs that are under way.
        self._stopped_by: CommandError | None = None

    async def run(self, *, lines: int) -> BatchProgress:
        """Answer every line that has no answer yet.

        Args:
            lines: in the file, as long as they are not counted without blank ones.

        Raises:
            CommandError: the run cannot go on; what it had answered is in the files.
        """
        self._change(lines=lines)
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch.run())
                async with asyncio.TaskGroup() as started:
                    await self._start_lines(started)
                watching.cancel()
        except* OutputRefused as group:
            self._stop(_first_of(group))
        if self._stopped_by is not None:
            raise self._stopped_by
        return self._progress

    async def _start_lines(self, tasks: asyncio.TaskGroup) -> None:
        count = 0
        for raw in read_lines(self._files.requests):
            count += 1
            if count % _LINES_PER_TURN == 0:
                await asyncio.sleep(0)
            line = self._next_line(raw)
            if line is None:
                continue
            # Both before the next line is read, so that a bounded number of bodies is in memory.
            await self._places.acquire()
            await self._submitting.acquire()
            if self._stopped_by is not None:
                return
            self._change(in_flight=self._progress.in_flight + 1)
            tasks.create_task(self._run_line(line))
        self._change(lines=count)

    def _next_line(self, raw: RawLine) -> RequestLine | None:
        """Return a line that needs a job; one that has an answer, or cannot be sent, is counted."""
        line = parse_line(raw)
        if isinstance(line, RequestLine):
            first = self._files.index.first_number(line.custom_id, line.number)
            if first != line.number:
                message = f"has the custom_id of line {first}; give each line its own"
                line = fault(raw, line.custom_id, "duplicate_custom_id", message)
        key = line.answer_id if isinstance(line, LineFault) else id_key(line.custom_id)
        known = self._files.index.find_answer(key)
        if known is not None:
            self._count(succeeded=known.succeeded)
            is_changed = known.answer_id != line.answer_id
            self._change(earlier=self._progress.earlier + 1, changed=self._progress.changed + is_changed)
            return None
        if isinstance(line, LineFault):
            self._write(Answer.of_fault(line))
            return None
        return line

    async def _run_line(self, line: RequestLine) -> None:
        ticket = Ticket.of(line)
        try:
            try:
                submitted = await self._jobs.submit(line)
            finally:
                # Its body may hold images.
                del line
                self._submitting.release()
            if isinstance(submitted, Answer):
                self._write(submitted)
            else:
                await self._collect_when_ended(ticket, submitted)
        except OutputRefused:
            # Ends the run at once: the answers of the jobs under way could not be written either.
            raise
        except CommandError as error:
            self._stop(error)
        finally:
            self._change(in_flight=self._progress.in_flight - 1)
            self._places.release()

    async def _collect_when_ended(self, ticket: Ticket, request_id: str) -> None:
        answer = None
        if await self._watch.wait(request_id):
            async with self._collecting:
                answer = await self._jobs.collect(ticket, request_id)
        if answer is None:
            self._change(lost=self._progress.lost + 1)
        else:
            self._write(answer)

    def _write(self, answer: Answer) -> None:
        self._files.write(answer)
        self._count(succeeded=answer.failure is None)
        if answer.failure is not None:
            self._on_failure(answer)

    def _stop(self, error: CommandError) -> None:
        # The first one says why; those behind it are its consequences.
        self._stopped_by = self._stopped_by or error

    def _count(self, *, succeeded: bool) -> None:
        counts = self._progress
        self._change(succeeded=counts.succeeded + succeeded, failed=counts.failed + (not succeeded))

    def _change(self, **changes: int) -> None:
        self._progress = replace(self._progress, **changes)
        self._on_progress(self._progress)


def _first_of(group: BaseExceptionGroup[OutputRefused]) -> OutputRefused:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


async def run_batch(
    client: AsyncClient,
    paths: BatchPaths,
    *,
    in_flight: int = DEFAULT_IN_FLIGHT,
    retry_failed: bool = False,
    on_progress: OnProgress | None = None,
    on_failure: OnFailure | None = None,
) -> BatchProgress:
    """Answer every line of a batch file that has no answer yet; return how the lines ended.

    Args:
        in_flight: jobs under way at a time.
        retry_failed: whether lines whose answer is an error are rendered again; their answers are removed first.
        on_progress: called after each change.
        on_failure: called with each answer of this run that is an error.

    Raises:
        OutputRefused: a file cannot be read or written, or another run has the same answers.
        ApiError: the API refuses all calls, or cannot be reached for as long as the client tries.
    """
    paths.check()
    # Before a file is created: the address may be mistyped.
    await client.models()
    with open_batch(paths) as files:
        files.read_answers(retry_failed=retry_failed)
        run = BatchRun(
            LineJobs(client, files.index, images=paths.images),
            JobWatch(client),
            files,
            in_flight=in_flight,
            on_progress=on_progress or (lambda progress: None),
            on_failure=on_failure or (lambda answer: None),
        )
        progress = await run.run(lines=await asyncio.to_thread(count_lines, paths.requests))
        if not progress.lost:
            files.index.forget_jobs()
    return progress
