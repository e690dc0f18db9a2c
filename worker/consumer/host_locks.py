"""Lock slot names and GPUs between the worker processes of one host, so that each belongs to one process at a time.

The locks are flocks: the kernel releases them when the process ends, even if it is killed.
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

    Raises:
        ServerFailed: another process on this host has the name, or `folder` cannot hold locks.
    """
    # A second process with this name would requeue the first one's items as those of a dead predecessor.
    digest = hashlib.sha256(f"{redis_url} {name}".encode()).hexdigest()[:16]
    lock = _open(folder, f"slot-{digest}")
    if not _try_acquire(lock):
        raise ServerFailed(f"another worker on this host has the name {name!r}; give this one another --name")
    with _released_at_exit(lock):
        yield


@contextmanager
def gpu_lock(gpu: str, *, folder: Path | None) -> Iterator[None]:
    """Reserve a GPU; wait until its previous process has ended.

    Args:
        gpu: its UUID, the same in every container of the host.

    Raises:
        ServerFailed: `folder` cannot hold locks.
    """
    # An old and a new worker process must never occupy the GPU's memory at the same time.
    lock = _open(folder, gpu)
    if not _try_acquire(lock):
        logger.warning("waiting for the GPU's previous process to end", extra={"gpu": gpu, "lock": lock.lock_file})
        lock.acquire(poll_interval=_POLL_S)
    with _released_at_exit(lock):
        yield


@contextmanager
def _released_at_exit(lock: FileLock) -> Iterator[None]:
    # The file stays: after a deletion, a waiting process would lock a file that later processes cannot open.
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
    # On a file system without flock, filelock would fall back to a marker file, which outlives a killed process.
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
    return ServerFailed(
        f"FLUX2_WORKER_LOCK_DIR {folder} cannot hold locks: {error.strerror}; choose a folder that this user can write"
    )
