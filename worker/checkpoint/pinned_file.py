"""Pin the pages of a file in the page cache, so that a GPU copies from there without a copy in between."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import threading
import warnings
import weakref
from concurrent.futures import Executor, Future, wait
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import NotPinned
from worker.checkpoint.pinned import cuda_runtime

logger = logging.getLogger("flux2.worker.checkpoint")

# Memory that pinning leaves to the rest of the host.
_SPARE_BYTES = 4_000_000_000
_SAMPLES = 64
_PIECE_BYTES = 2**28  # pinning one piece blocks other threads' calls to the GPU for 8 ms
# The flag cudaHostRegisterReadOnly: the GPU will not write.
_READ_ONLY = 8


class PinnedFile:
    """A mapped file whose pages `executor` pins, one piece after the other, at 0.03 s for each GB.

    Later writes to the file change the pages. If the file is truncated, pinned pages keep their values.

    Attributes:
        pinning: done when no more pages will be pinned.

    Raises:
        NotPinned: the file cannot be mapped.
    """

    def __init__(self, descriptor: int, *, executor: Executor) -> None:
        try:
            # Shared, not private: all workers of a host then pin the same pages of the page cache.
            self._map = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise NotPinned(f"it cannot be mapped: {error}") from error
        self._bytes = _bytes_of(self._map)
        self._counts_as_available = not _in_shared_memory(descriptor)
        self._pinned: dict[int, int] = {}  # addresses, by number of the piece
        self._unregister = weakref.finalize(self, _unregister, self._pinned)
        self._unregister.atexit = False
        self._stop = threading.Event()
        self.pinning: Future[None] = executor.submit(self._pin)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self._bytes)

    @property
    def unavailable_bytes(self) -> int:
        """Bytes that are pinned although the host still counts them as available memory."""
        return self.size if self._counts_as_available else 0

    def pages(self, start: int, size: int) -> list[Tensor] | None:
        """Return a part of the file as views of its pieces; None unless all of them are pinned."""
        end = start + size
        # The pieces are pinned one by one, so they are separate views: no copy may cross from one into the next.
        pieces = range(start // _PIECE_BYTES, -(-end // _PIECE_BYTES))
        if end > len(self._bytes) or not all(piece in self._pinned for piece in pieces):
            return None
        bounds = [start, *(piece * _PIECE_BYTES for piece in pieces[1:]), end]
        return [self._bytes[begin:until] for begin, until in pairwise(bounds)]

    def close(self) -> None:
        """Unpin the pages; no copy from them may be under way."""
        self._stop.set()
        if not self.pinning.cancel():
            wait([self.pinning])
        self._unregister()

    def _pin(self) -> None:
        # From the end: a thread that reads the file at the same time begins at its start.
        for piece in reversed(range(-(-len(self._bytes) // _PIECE_BYTES))):
            if self._stop.is_set():
                return
            start = piece * _PIECE_BYTES
            address, size = self._bytes.data_ptr() + start, min(_PIECE_BYTES, len(self._bytes) - start)
            if failed := int(cuda_runtime().cudaHostRegister(address, size, _READ_ONLY)):
                # Not an error: the reader's threads read all pages that are not pinned.
                logger.info("no more pages pinned", extra={"error": failed, "bytes": size, "at": start})
                return
            self._pinned[piece] = address


def _bytes_of(mapped: mmap.mmap) -> Tensor:
    """Return a map's bytes; do not write to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the warning that the bytes are read-only
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _unregister(pinned: dict[int, int]) -> None:
    while pinned:
        cuda_runtime().cudaHostUnregister(pinned.popitem()[1])


def check_room_to_pin(descriptor: int, *, pinned_bytes: int) -> None:
    """Raise unless the host has room for all pages of a file.

    Args:
        pinned_bytes: bytes that this process has pinned or is about to pin, but that the host counts as available.

    Raises:
        NotPinned: there is not enough memory, or the file cannot be mapped.
    """
    size = os.fstat(descriptor).st_size
    try:
        # Pages in memory need no more room: other workers have read them, and may have pinned them.
        missing = int(size * (1 - _share_in_memory(descriptor, size)))
    except OSError as error:
        raise NotPinned(f"it cannot be mapped: {error}") from error
    free = _available_bytes() - pinned_bytes
    if missing > free - _SPARE_BYTES:
        raise NotPinned(f"{missing / 1e9:.1f} GB of it must be read, and {free / 1e9:.1f} GB of memory are available")


def _in_shared_memory(descriptor: int) -> bool:
    """Whether a file is in a tmpfs or in no file system, so that the host can never reclaim its pages."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # only files in shared memory have seals
        return False
    return True


def _share_in_memory(descriptor: int, size: int) -> float:
    """Return the share of a file's pages that is in the page cache, from samples; 0 if the kernel does not say."""
    if size == 0 or _in_shared_memory(descriptor):
        return 1.0
    # To a process that neither owns the file nor may write it, mincore reports every page as present.
    if os.geteuid() not in (0, os.fstat(descriptor).st_uid) and not os.access(f"/proc/self/fd/{descriptor}", os.W_OK):
        return 0.0
    with mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapped:
        address, mincore = _bytes_of(mapped).data_ptr(), ctypes.CDLL(None).mincore
        found = ctypes.create_string_buffer(1)
        pages = -(-size // mmap.PAGESIZE)
        samples = min(_SAMPLES, pages)
        resident = 0
        for sample in range(samples):
            page = sample * (pages - 1) // max(samples - 1, 1)
            where = ctypes.c_void_p(address + page * mmap.PAGESIZE)
            if mincore(where, ctypes.c_size_t(1), found) == 0:
                resident += found.raw[0] & 1
    return resident / samples


def _available_bytes() -> int:
    """Return the memory that is available without swapping, to this host and to this process's control group."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    # A container's limit may be far below the host's memory. The kernel can reclaim its file pages, but not its tmpfs.
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            available = min(available, int(limit) - used + int(stat["file"]) - int(stat["shmem"]))
    except (OSError, KeyError):
        pass  # no control group, or one of version 1
    return available
