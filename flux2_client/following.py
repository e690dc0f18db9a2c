"""Follow jobs until they end, and download their images as they are finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from flux2_client.async_client import AsyncClient, AsyncImage
from flux2_client.destination import Destination
from flux2_client.file_names import name_images
from flux2_client.models import Result, Status, SweepStatus
from flux2_client.receiver import holds_object
from flux2_client.report import Report, print_message
from flux2_client.terminal import exit_code
from shared.errors import CommandError, OutputRefused

StatusT = TypeVar("StatusT", Status, SweepStatus)

# Jobs that are polled at the same time; the others wait for their turn.
_JOBS = 16
# A result lists all finished images, so it is fetched for a tenth of a job's images at a time.
_SHARE = 10


class Downloader:
    """Saves images of any number of jobs, some at a time.

    Attributes:
        faults: messages of images that could not be saved.
        saved: paths of those that were saved, below the folder.
    """

    def __init__(self, to: Destination, report: Report) -> None:
        self._to = to
        self._report = report
        self._free = asyncio.Semaphore(to.parallel)
        self.faults: list[str] = []
        self.saved: set[Path] = set()
        self._done: set[tuple[str, int]] = set()

    async def save_all(self, result: Result[AsyncImage]) -> None:
        """Save the images of a job that are not saved yet, under the names of the destination's template."""
        await self.save_named(name_images(result.images, self._to.name))

    async def save_named(self, named: Mapping[Path, AsyncImage]) -> None:
        """Save the images that are not saved yet; a failure is reported and leaves the others alone."""
        new = {path: image for path, image in named.items() if (image.request_id, image.index) not in self._done}
        self._done.update((image.request_id, image.index) for image in new.values())
        await asyncio.gather(*(self._save(image, path) for path, image in new.items()))

    async def _save(self, image: AsyncImage, name: Path) -> None:
        path = self._to.folder / name
        async with self._free:
            try:
                if not self._to.overwrite:
                    self._check_same(image, path)
                await image.save(path)
            except CommandError as error:
                self.faults.append(str(error))
                print_message(str(error))
                return
        self.saved.add(name)
        self._report.saved(image, path)

    def _check_same(self, image: AsyncImage, path: Path) -> None:
        try:
            path.stat()
        except OSError:
            # Nothing is there, or the download says why it cannot be written.
            return
        if not holds_object(path, size_bytes=image.size_bytes, sha256=image.sha256):
            raise OutputRefused(f"{path} holds something else; choose another --name or --output, or --overwrite it")


async def follow_jobs(
    client: AsyncClient, request_ids: Sequence[str], *, report: Report, to: Destination | None
) -> int:
    """Wait until all jobs have ended, and save their images `to` a folder; return the command's exit code."""
    downloader = Downloader(to, report) if to else None
    turns = asyncio.Semaphore(_JOBS)

    async def follow(request_id: str) -> Status:
        async with turns:
            return await _follow(client, request_id, report=report, downloader=downloader)

    statuses = await asyncio.gather(*map(follow, request_ids))
    return exit_code(statuses, downloader.faults if downloader else ())


async def _follow(client: AsyncClient, request_id: str, *, report: Report, downloader: Downloader | None) -> Status:
    async def save(downloader: Downloader) -> None:
        await downloader.save_all(await client.result(request_id))

    return await follow_one(
        lambda notice: client.wait(request_id, on_status=notice),
        save=partial(save, downloader) if downloader else None,
        report=report,
    )


async def follow_one(
    wait: Callable[[Callable[[StatusT], None]], Awaitable[StatusT]],
    *,
    save: Callable[[], Awaitable[None]] | None,
    report: Report,
) -> StatusT:
    """Wait until a job or a sweep has ended, and save its images as they are finished.

    Args:
        wait: polls until the end, calls its argument with every status, and returns the last one.
        save: saves the images that are finished and not saved yet; None saves none.
    """
    saving: asyncio.Future[None] | None = None
    saved = 0

    def notice(status: StatusT) -> None:
        nonlocal saving, saved
        report.progressed(status)
        finished = status.count("succeeded")
        is_busy = saving is not None and not saving.done()
        if save and not status.has_ended and not is_busy and finished - saved > status.images // _SHARE:
            saved, saving = finished, asyncio.ensure_future(save())

    status = await wait(notice)
    if saving is not None:
        await saving
    if save is not None:
        await save()
    report.ended(status)
    return status
