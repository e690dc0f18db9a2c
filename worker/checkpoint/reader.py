"""Read a checkpoint's bytes into tensors, once while loading, and again whenever base weights are needed.

Sixteen threads read each file. The reader also pins files that are read repeatedly, in the page cache, and a GPU then
copies from there: 53 GB/s on an H100, as from any pinned memory. The threads read all pages that are not pinned yet or
cannot be pinned, for lack of memory or because the file system forbids it.
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

# Sixteen threads bring a GPU 30 to 38 GB/s; one thread that walks through mapped pages waits for each, and brings 10.
_THREADS = 16
# Bytes per copy. On an H100, 16 threads reach 38 GB/s with 32 MiB, 32 GB/s with 8 MiB and 10 GB/s with 2 MiB.
_BLOCK_BYTES = 32 * 1024**2

#: Waits until a read is complete; on a GPU, the current stream waits for the copy instead of the thread. Raises
#: CheckpointError if a file cannot be read or is too short.
Completion = Callable[[], None]


def already_complete() -> None:
    """The completion of a read that has nothing left to do."""


class Region(NamedTuple):
    """A range of bytes in a file."""

    file: Path
    start: int
    size: int


class Reader:
    """Fills tensors from files that it keeps open. Threads may share it.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device, *, threads: int = _THREADS, block_bytes: int = _BLOCK_BYTES) -> None:
        self.device = device
        self._block_bytes = block_bytes
        self._pool = device_thread_pool(device, threads, "flux2-read")
        # One thread: pinning a piece blocks the others.
        self._pinner = device_thread_pool(device, 1, "flux2-pin")
        self._thread_local = threading.local()
        # Open descriptors: a checkpoint that is replaced by renaming must not mix with the one that was loaded.
        self._files: dict[Path, int] = {}
        # Descriptors must be closed even if nobody uses the reader as a context manager.
        weakref.finalize(self, _close, self._files)
        self._pinned: dict[Path, PinnedFile] = {}
        self._stream = side_stream(device)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.close_except(())
        self._pinner.shutdown()

    def open(self, file: Path) -> None:
        """Open a file, unless it is open already.

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
        """Begin to pin the pages of a file that will be read repeatedly; do nothing if they cannot be pinned.

        Call this after loading has read the file.

        Raises:
            CheckpointError: it cannot be opened.
        """
        # Pinning takes as long as reading the file once, and slows other reads down.
        self.open(file)
        if self.device.type != "cuda" or file in self._pinned:
            return
        try:
            pinned_bytes = sum(pinned.unavailable_bytes for pinned in self._pinned.values())
            check_room_to_pin(self._files[file], pinned_bytes=pinned_bytes)
            self._pinned[file] = PinnedFile(self._files[file], executor=self._pinner)
        except NotPinned as error:
            logger.info("file not pinned", extra={"file": str(file), "error": str(error)})

    def close_except(self, files: Collection[Path]) -> None:
        """Close and unpin all files but these."""
        # The GPU may still copy from the pages of a file that was read last.
        if self._stream is not None:
            self._stream.synchronize()
        for file in self._files.keys() - set(files):
            if pinned := self._pinned.pop(file, None):
                pinned.close()
            os.close(self._files.pop(file))

    def read(self, region: Region, target: Tensor) -> Completion:
        """Begin to fill `target`, contiguous and of the region's size, after all work in the current stream.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        self.open(region.file)
        flat = target.view(-1).view(torch.uint8)
        if pages := self._pages(region.file, region.start, region.size):
            return self._copy(pages, flat)
        if self.device.type == "cuda":
            # The threads copy on their own streams, and the current stream may still be using this memory.
            torch.cuda.current_stream(self.device).synchronize()
        parts = []
        for start in range(0, region.size, self._block_bytes):
            block = flat[start : start + self._block_bytes]
            parts.append(self._pool.submit(self._fill, region.file, region.start + start, block))
        return lambda: _results(parts)

    def read_rows(self, parts: Sequence[Region], target: Tensor) -> Completion:
        """Begin to fill `target`, whose rows are divided equally between the regions; see `read`."""
        completions = [self.read(region, rows) for region, rows in zip(parts, target.chunk(len(parts)), strict=True)]

        def complete_all() -> None:
            for complete in completions:
                complete()

        return complete_all

    def _pages(self, file: Path, start: int, size: int) -> list[Tensor] | None:
        pinned = self._pinned.get(file)
        return pinned.pages(start, size) if pinned else None

    def _copy(self, pages: Sequence[Tensor], flat: Tensor) -> Completion:
        """Let the GPU copy from pinned pages."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            _join(pages, flat)
            copied = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(copied)

    def _fill(self, file: Path, start: int, block: Tensor) -> None:
        if self.device.type != "cuda":
            self._read_block(file, start, block)
            return
        staging, stream = self._staging()
        pages = self._pages(file, start, len(block))  # they may have been pinned since `read`
        if pages is None:
            pages = [staging[: len(block)]]
            self._read_block(file, start, pages[0])
        with torch.cuda.stream(stream):
            _join(pages, block)
        stream.synchronize()

    def _staging(self) -> tuple[Tensor, torch.cuda.Stream]:
        """Return this thread's pinned block of host memory, and its stream."""
        if not hasattr(self._thread_local, "staging"):
            self._thread_local.staging = pin(torch.zeros(self._block_bytes, dtype=torch.uint8), device=self.device)
            self._thread_local.stream = side_stream(self.device)
        return self._thread_local.staging, self._thread_local.stream

    def _read_block(self, file: Path, start: int, block: Tensor) -> None:
        view = block.numpy().data
        while view:
            try:
                # preadv takes the position as an argument, so sixteen threads can share one descriptor.
                count = os.preadv(self._files[file], [view], start)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{file}: ends at byte {start}, in the middle of a tensor; download it again")
            view, start = view[count:], start + count


def _join(pieces: Sequence[Tensor], whole: Tensor) -> None:
    """Copy pieces of pinned memory, one after the other, on the current stream."""
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
