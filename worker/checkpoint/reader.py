"""Read a checkpoint's bytes to where they will stay, and again whenever they are wanted.

Sixteen threads bring a GPU 30 to 38 GB/s; one that walks through mapped pages would wait for each, and reach 10. What
is read again and again has its pages locked where they are, in the page cache, and a GPU copies from there: 53 GB/s on
an H100, as from any locked memory, without a copy in between. Workers of one host lock the same pages. Locking takes as
long as reading once and holds reading up, so it is begun when that is done; and until all is locked, or where it cannot
be, for want of memory or on a file system that does not allow it, the threads go on.
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

from shared.errors import CheckpointError, NotPinned
from worker.checkpoint.pinned import device_thread_pool, pin, side_stream
from worker.checkpoint.pinned_file import PinnedFile, check_room_to_pin

logger = logging.getLogger("flux2.worker.checkpoint")

_THREADS = 16
# Copied at once. On an H100, 16 threads reach 38 GB/s so; in pieces of 8 MiB 32 GB/s, and of 2 MiB 10.
_BLOCK_BYTES = 32 * 1024**2

#: Waits until something has been read, and holds the current stream up until it is on the device. Raises
#: CheckpointError if a file cannot be read, or ends too early.
Completion = Callable[[], None]


def already_complete() -> None:
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
    """

    def __init__(self, device: torch.device, *, threads: int = _THREADS, block_bytes: int = _BLOCK_BYTES) -> None:
        self.device = device
        self._block_bytes = block_bytes
        self._pool = device_thread_pool(device, threads, "flux2-read")
        self._locker = device_thread_pool(device, 1, "flux2-lock")  # one: each piece holds the others up
        self._mine = threading.local()
        self._files: dict[Path, int] = {}
        weakref.finalize(self, _close, self._files)
        self._locked: dict[Path, PinnedFile] = {}
        self._stream = side_stream(device)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.close_except(())
        self._locker.shutdown()

    def open(self, file: Path) -> None:
        """Open a file to read from.

        Raises:
            CheckpointError: it cannot be opened.
        """
        if file in self._files:
            return
        try:
            self._files[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error

    def pin(self, file: Path) -> None:
        """Begin to lock the pages of a file that a GPU will read again and again, if that can be.

        Raises:
            CheckpointError: it cannot be opened.
        """
        self.open(file)
        if self.device.type != "cuda" or file in self._locked:
            return
        try:
            check_room_to_pin(self._files[file], locked=sum(locked.taken for locked in self._locked.values()))
            self._locked[file] = PinnedFile(self._files[file], locker=self._locker)
        except NotPinned as error:
            logger.info("pages not locked", extra={"file": str(file), "error": str(error)})

    def close_except(self, files: Collection[Path]) -> None:
        """Close the others, and unlock them."""
        if self._stream is not None:
            self._stream.synchronize()
        for file in self._files.keys() - set(files):
            if locked := self._locked.pop(file, None):
                locked.close()
            os.close(self._files.pop(file))

    def read(self, region: Region, target: Tensor) -> Completion:
        """Begin to fill `target`, contiguous and of the region's size; what the current stream was given comes first.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        self.open(region.file)
        flat = target.view(-1).view(torch.uint8)
        if pages := self._pages(region.file, region.start, region.size):
            return self._copy(pages, flat)
        if self.device.type == "cuda":
            # The threads' copies run on streams of their own, and this memory may still be in use on the current one.
            torch.cuda.current_stream(self.device).synchronize()
        parts = []
        for start in range(0, region.size, self._block_bytes):
            block = flat[start : start + self._block_bytes]
            parts.append(self._pool.submit(self._fill, region.file, region.start + start, block))
        return lambda: _results(parts)

    def read_rows(self, parts: Sequence[Region], target: Tensor) -> Completion:
        """Begin to fill equal parts of the rows of `target`, one from each region; see `read`."""
        arrivals = [self.read(region, rows) for region, rows in zip(parts, target.chunk(len(parts)), strict=True)]

        def arrive() -> None:
            for arrival in arrivals:
                arrival()

        return arrive

    def _pages(self, file: Path, start: int, size: int) -> list[Tensor] | None:
        locked = self._locked.get(file)
        return locked.pages(start, size) if locked else None

    def _copy(self, pages: Sequence[Tensor], flat: Tensor) -> Completion:
        """Let the GPU copy from locked pages."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            _join(pages, flat)
            copied = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(copied)

    def _fill(self, file: Path, start: int, block: Tensor) -> None:
        if self.device.type != "cuda":
            self._take(file, start, block)
            return
        staging, stream = self._own()
        pages = self._pages(file, start, len(block))  # they may have been locked since
        if pages is None:
            pages = [staging[: len(block)]]
            self._take(file, start, pages[0])
        with torch.cuda.stream(stream):
            _join(pages, block)
        stream.synchronize()

    def _own(self) -> tuple[Tensor, torch.cuda.Stream]:
        """Return this thread's block of host memory and its stream."""
        if not hasattr(self._mine, "staging"):
            self._mine.staging = pin(torch.zeros(self._block_bytes, dtype=torch.uint8), device=self.device)
            self._mine.stream = side_stream(self.device)
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


def _join(pieces: Sequence[Tensor], whole: Tensor) -> None:
    """Copy from locked memory on the current stream."""
    done = 0
    for piece in pieces:
        whole[done : done + len(piece)].copy_(piece, non_blocking=True)
        done += len(piece)


def _close(files: dict[Path, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _results(parts: Sequence[Future[None]]) -> None:
    for part in parts:
        part.result()
