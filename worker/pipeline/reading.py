"""Read a checkpoint's bytes to where they will stay, and again whenever they are wanted.

For a GPU the files' pages are locked where they are, in the page cache, and it copies from there: 53 GB/s on an H100,
as from any locked memory, without a copy in between; workers of one host lock the same pages. Where they cannot be
locked, for want of memory or on a file system that does not allow it, sixteen threads read them, at about 30 GB/s. One
thread that walks through mapped pages would wait for each of them, and reach 10.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import CheckpointError
from worker.pipeline.host import LockedFile, NotLocked, lock, on_device, room_to_lock

logger = logging.getLogger("flux2.worker.pipeline")

_THREADS = 16
_BLOCK_BYTES = 32 * 1024**2

#: Waits until something has been read, and holds the current stream up until it is on the device. Raises
#: CheckpointError if a file cannot be read, or ends too early.
Arrival = Callable[[], None]


def at_once() -> None:
    """The arrival of what is there already."""


class Region(NamedTuple):
    """Bytes of a file."""

    file: Path
    start: int
    size: int


class Reader:
    """Fills tensors from files, which it holds open: what replaces them later is not read. Threads may share it.

    Args:
        device: where the tensors lie.
        locks: whether to lock files' pages for a GPU.
    """

    def __init__(
        self, device: torch.device, *, threads: int = _THREADS, block_bytes: int = _BLOCK_BYTES, locks: bool = True
    ) -> None:
        self.device = device
        self._locks = locks and device.type == "cuda"
        self._block_bytes = block_bytes
        self._pool = on_device(device, threads, "flux2-read")
        self._mine = threading.local()
        self._files: dict[Path, int] = {}
        weakref.finalize(self, _close, self._files)
        self._locked: dict[Path, LockedFile] = {}  # threads read the others
        self._giving_up = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.keep_only(())

    def open(self, file: Path) -> None:
        """Open a file to read from, and lock its pages if that can be.

        Raises:
            CheckpointError: it cannot be opened.
        """
        if file in self._files:
            return
        try:
            self._files[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if not self._locks:
            return
        try:
            room_to_lock(self._files[file], locked=sum(locked.size for locked in self._locked.values()))
            self._locked[file] = LockedFile(self._files[file], device=self.device)
        except NotLocked as error:
            _tell(file, error)

    def keep_only(self, files: Collection[Path]) -> None:
        """Close the others, and unlock them."""
        if self._stream is not None:
            self._stream.synchronize()
        for file in self._files.keys() - set(files):
            if locked := self._locked.pop(file, None):
                locked.close()
            os.close(self._files.pop(file))

    def read(self, region: Region, target: Tensor) -> Arrival:
        """Begin to fill `target`, contiguous and of the region's size; what the current stream was given comes first.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        self.open(region.file)
        flat = target.view(-1).view(torch.uint8)
        locked = self._locked.get(region.file)
        if locked is not None:
            try:
                return self._copy(locked, region, flat)
            except NotLocked as error:
                self._unlock(region.file, error)
        if self.device.type == "cuda":
            # The threads' copies run on streams of their own, and this memory may still be in use on the current one.
            torch.cuda.current_stream(self.device).synchronize()
        parts = []
        for start in range(0, region.size, self._block_bytes):
            block = flat[start : start + self._block_bytes]
            parts.append(self._pool.submit(self._fill, region.file, region.start + start, block))
        return lambda: _results(parts)

    def read_rows(self, parts: Sequence[Region], target: Tensor) -> Arrival:
        """Begin to fill equal parts of the rows of `target`, one from each region; see `read`."""
        arrivals = [self.read(region, rows) for region, rows in zip(parts, target.chunk(len(parts)), strict=True)]

        def arrive() -> None:
            for arrival in arrivals:
                arrival()

        return arrive

    def _unlock(self, file: Path, error: NotLocked) -> None:
        """Let threads read a file, of which some pages may have been locked."""
        with self._giving_up:
            if locked := self._locked.pop(file, None):
                _tell(file, error)
                assert self._stream is not None
                self._stream.synchronize()
                locked.close()

    def _copy(self, locked: LockedFile, region: Region, flat: Tensor) -> Arrival:
        """Let the GPU copy from locked pages."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            done = 0
            for pages in locked.pages(region.start, region.size):
                flat[done : done + len(pages)].copy_(pages, non_blocking=True)
                done += len(pages)
            if done != region.size:
                raise CheckpointError(f"{region.file}: ends at byte {region.start + done}, in the middle of a tensor")
            copied = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(copied)

    def _fill(self, file: Path, start: int, block: Tensor) -> None:
        if self.device.type != "cuda":
            self._take(file, start, block)
            return
        staging, stream = self._own()
        self._take(file, start, staging[: len(block)])
        with torch.cuda.stream(stream):
            block.copy_(staging[: len(block)], non_blocking=True)
        stream.synchronize()

    def _own(self) -> tuple[Tensor, torch.cuda.Stream]:
        """Return this thread's block of host memory and its stream."""
        if not hasattr(self._mine, "staging"):
            self._mine.staging = lock(torch.zeros(self._block_bytes, dtype=torch.uint8), device=self.device)
            self._mine.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._mine.staging, self._mine.stream

    def _take(self, file: Path, start: int, block: Tensor) -> None:
        view = block.numpy().data
        while view:
            try:
                count = os.preadv(self._files[file], [view], start)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{file}: ends at byte {start}, in the middle of a tensor")
            view, start = view[count:], start + count


def _tell(file: Path, error: NotLocked) -> None:
    logger.info("pages not locked", extra={"file": str(file), "error": str(error)})


def _close(files: dict[Path, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _results(parts: Sequence[Future[None]]) -> None:
    for part in parts:
        part.result()
