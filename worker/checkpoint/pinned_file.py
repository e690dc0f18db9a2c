"""Files in the page cache whose pages are locked where they are, so that a GPU copies from there."""

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

# Left to the rest of the host when pages are locked.
_SPARE_BYTES = 4_000_000_000
_SAMPLES = 64
_PIECE_BYTES = 2**28  # each holds others' calls to the GPU up for 8 ms
# The flag cudaHostRegisterReadOnly: the GPU is not going to write.
_READ_ONLY = 8


class PinnedFile:
    """A file's pages in the page cache, mapped, and locked one piece after the other by `locker`, from its end.

    That takes 0.03 s a GB; whoever reads the file meanwhile begins at its start. What is written to the file later
    shows; what the file loses when it is cut off stays as it was.

    Raises:
        NotPinned: the file cannot be mapped.
    """

    def __init__(self, descriptor: int, *, locker: Executor) -> None:
        try:
            self._map = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise NotPinned(f"it cannot be mapped: {error}") from error
        self._bytes = _bytes_of(self._map)
        self._counted = not _in_shared_memory(descriptor)
        self._locked: dict[int, int] = {}  # by a piece's number, its address
        self._unregister = weakref.finalize(self, _unregister, self._locked)
        self._unregister.atexit = False
        self._enough = threading.Event()
        self.locking: Future[None] = locker.submit(self._lock)

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._bytes)

    @property
    def taken(self) -> int:
        """What locking takes of the memory that the host counts as available, in bytes."""
        return self.size if self._counted else 0

    def pages(self, start: int, size: int) -> list[Tensor] | None:
        """Return a part of the file, in pieces that were locked by themselves; None while any is not."""
        end = start + size
        pieces = range(start // _PIECE_BYTES, -(-end // _PIECE_BYTES))
        if end > len(self._bytes) or not all(piece in self._locked for piece in pieces):
            return None
        bounds = [start, *(piece * _PIECE_BYTES for piece in pieces[1:]), end]
        return [self._bytes[begin:until] for begin, until in pairwise(bounds)]

    def close(self) -> None:
        """Unlock the pages; nothing may be copying from them any more."""
        self._enough.set()
        if not self.locking.cancel():
            wait([self.locking])
        self._unregister()

    def _lock(self) -> None:
        for piece in reversed(range(-(-len(self._bytes) // _PIECE_BYTES))):
            if self._enough.is_set():
                return
            start = piece * _PIECE_BYTES
            address, size = self._bytes.data_ptr() + start, min(_PIECE_BYTES, len(self._bytes) - start)
            if failed := int(cuda_runtime().cudaHostRegister(address, size, _READ_ONLY)):
                logger.info("no more pages locked", extra={"error": failed, "bytes": size, "at": start})
                return
            self._locked[piece] = address


def _bytes_of(mapped: mmap.mmap) -> Tensor:
    """Return what a map holds; it must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which says just that
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _unregister(locked: dict[int, int]) -> None:
    while locked:
        cuda_runtime().cudaHostUnregister(locked.popitem()[1])


def check_room_to_pin(descriptor: int, *, locked: int) -> None:
    """Refuse to lock a file whose pages the host has no room for.

    Pages that are in memory already need none: other workers have read them, and may have locked them.

    Args:
        locked: bytes that this process has locked, or is about to, and that the host counts as available.

    Raises:
        NotPinned: there is not enough memory, or the file cannot be mapped.
    """
    size = os.fstat(descriptor).st_size
    try:
        missing = int(size * (1 - _share_in_memory(descriptor, size)))
    except OSError as error:
        raise NotPinned(f"it cannot be mapped: {error}") from error
    free = _available_bytes() - locked
    if missing > free - _SPARE_BYTES:
        raise NotPinned(f"{missing / 1e9:.1f} GB of it are to be read, and {free / 1e9:.1f} GB of memory are available")


def _in_shared_memory(descriptor: int) -> bool:
    """Whether a file lies in a tmpfs, or in no file system: such pages can never be given up for others."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # no other file has seals
        return False
    return True


def _share_in_memory(descriptor: int, size: int) -> float:
    """Return what share of a file's pages is in the page cache, by samples; 0 where the kernel does not say.

    It tells those who may not write a file, and do not own it, that all of it is there.
    """
    if size == 0 or _in_shared_memory(descriptor):
        return 1.0
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
    """Return the memory that can be had without swapping, by the host's count and by that of the control group."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            available = min(available, int(limit) - used + int(stat["file"]) - int(stat["shmem"]))
    except (OSError, KeyError):
        pass  # no control group, or one of the first version
    return available
