"""Read a checkpoint's bytes with many threads at once, into where they will stay.

One thread that walks through mapped pages waits for each of them: 9.6 GB/s from the page cache of an H100's host, whose
copy engine takes 55. Sixteen threads that read into page-locked blocks reach 44.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import CheckpointError
from worker.pipeline.host import lock

_THREADS = 16
_STAGES = 2
_BLOCK_BYTES = 16 * 1024**2


class Region(NamedTuple):
    """Bytes of a file."""

    file: Path
    start: int
    size: int


#: A block on its way: the event after which it is on the device, None on a host.
Part = Future["torch.cuda.Event | None"]


def arrive(parts: Sequence[Part]) -> None:
    """Wait until blocks have been read, and hold the current stream up until they are on the device.

    Raises:
        CheckpointError: a file cannot be read, or ends too early.
    """
    for part in parts:
        event = part.result()
        if event is not None:
            event.wait()


class _Stage:
    """Page-locked memory that one block passes through while the thread reads the next into another."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._memory = lock(torch.zeros(size, dtype=torch.uint8), device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def free(self) -> Tensor:
        """Return the memory once what was in it has been copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._memory

    def copy(self, values: Tensor, target: Tensor) -> torch.cuda.Event:
        """Begin to copy what now is in the memory."""
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            target.copy_(values, non_blocking=True)
            self._copied.record(self._stream)
        return self._copied


class Reader:
    """Fills tensors; they are whole after `wait`, and after the context of a reader that is used only once.

    Args:
        device: where the tensors lie.
    """

    def __init__(self, device: torch.device, *, threads: int = _THREADS, block_bytes: int = _BLOCK_BYTES) -> None:
        self._device = device
        self._block_bytes = block_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="flux2-read")
        self._mine = threading.local()
        self._files: dict[Path, int] = {}
        self._parts: list[Part] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for descriptor in self._files.values():
                os.close(descriptor)

    def open(self, file: Path) -> None:
        """Open a file to read from; one that is open stays the same, whatever happens to its name.

        Raises:
            CheckpointError: it cannot be opened.
        """
        if file not in self._files:
            try:
                self._files[file] = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error

    def read(self, region: Region, target: Tensor) -> list[Part]:
        """Begin to fill `target`, contiguous and of the region's size; return what `arrive` waits for.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        self.open(region.file)
        if self._device.type == "cuda":
            # The copies run on streams of their own, and this memory may still be in use on the current one.
            torch.cuda.current_stream(self._device).synchronize()
        flat = target.view(-1).view(torch.uint8)
        parts = []
        for start in range(0, region.size, self._block_bytes):
            block = flat[start : start + self._block_bytes]
            parts.append(self._pool.submit(self._fill, region.file, region.start + start, block))
        self._parts += parts
        return parts

    def read_rows(self, parts: Sequence[Region], target: Tensor) -> list[Part]:
        """Begin to fill equal parts of the rows of `target`, one from each region; see `read`."""
        chunks = zip(parts, target.chunk(len(parts)), strict=True)
        return [part for region, rows in chunks for part in self.read(region, rows)]

    def wait(self) -> None:
        """Return when everything has been read.

        Raises:
            CheckpointError: a file ends too early.
        """
        parts, self._parts = self._parts, []
        concurrent.futures.wait(parts)
        arrive(parts)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _fill(self, file: Path, start: int, block: Tensor) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            self._take(file, start, block)
            return None
        if not hasattr(self._mine, "stages"):
            self._mine.stages = deque(_Stage(self._block_bytes, self._device) for _ in range(_STAGES))
        stage: _Stage = self._mine.stages[0]
        self._mine.stages.rotate()
        staging = stage.free()[: len(block)]
        self._take(file, start, staging)
        return stage.copy(staging, block)

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
