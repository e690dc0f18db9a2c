"""Locks between the worker processes of one host: a slot's name and a GPU each belong to one process at a time.

The kernel keeps each lock (flock) for an open file and drops it when the process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shared.errors import ServerFailed

logger = logging.getLogger("flux2.worker.consumer.locks")

_POLL_S = 0.5


@contextmanager
def slot_lock(name: str, *, redis_url: str, folder: Path | None) -> Iterator[None]:
    """Reserve a slot's name, for one ledger, on this host.

    A second process with the same name would requeue the first one's items as those of a dead predecessor.

    Raises:
        ServerFailed: another process on this host has the name, or `folder` cannot hold locks.
    """
    digest = hashlib.sha256(f"{redis_url} {name}".encode()).hexdigest()[:16]
    lock = _open(folder, f"slot-{digest}")
    if not _try_acquire(lock):
        raise ServerFailed(f"another worker on this host has the name {name!r}; give this one another --name")
    with _released_at_exit(lock):
        yield


@contextmanager
def gpu_lock(gpu: str, *, folder: Path | None) -> Iterator[None]:
    """Reserve a GPU; waits until its last process has ended, so two generations never share its memory.

    Args:
        gpu: its UUID, the same in every container of the host.

    Raises:
        ServerFailed: `folder` cannot hold locks.
    """
    lock = _open(folder, gpu)
    if not _try_acquire(lock):
        logger.warning("waiting for the GPU's last process to end", extra={"gpu": gpu, "lock": lock.lock_file})
        lock.acquire(poll_interval=_POLL_S)
    with _released_at_exit(lock):
        yield


@contextmanager
def _released_at_exit(lock: FileLock) -> Iterator[None]:
    # The file stays: deleting it would let a waiting process lock a file that no newcomer finds.
    try:
        yield
    finally:
        lock.release()


def _open(folder: Path | None, name: str) -> FileLock:
    folder = folder or Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    # The user's id is in the name: another user's lock file in a shared /tmp could not be opened.
    file = folder / f"flux2-{os.getuid()}-{name}.lock"
    # Without flock, filelock would fall back to a marker file, which outlives a killed process.
    return FileLock(file, mode=0o600, fallback_to_soft=False)


def _try_acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        raise _unusable(Path(lock.lock_file).parent, error) from error
    return True


def _unusable(folder: Path, error: OSError) -> ServerFailed:
    return ServerFailed(f"FLUX2_WORKER_LOCK_DIR {folder}: {error.strerror}; name a folder that this user can write")
