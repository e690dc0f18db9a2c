"""Locks between the worker processes of one host: a slot's name and a GPU each belong to one process at a time.

A lock is the kernel's, on an open file: it ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from shared.errors import ServerFailed

logger = logging.getLogger("flux2.worker.held")

_LOOK_S = 0.5


@contextmanager
def slot_held(name: str, *, redis_url: str, folder: Path | None) -> Iterator[None]:
    """Hold a slot's name in one ledger, on this host.

    A second process of that name would take the first one's items for a dead predecessor's.

    Raises:
        ServerFailed: another process on this host has the name, or locks cannot be kept in `folder`.
    """
    digest = hashlib.sha256(f"{redis_url} {name}".encode()).hexdigest()[:16]
    with _open(folder, f"slot-{digest}") as lock:
        if not _try_lock(lock):
            raise ServerFailed(f"another worker on this host is {name!r}; give this one another --name")
        yield


@contextmanager
def gpu_held(gpu: str, *, folder: Path | None) -> Iterator[None]:
    """Hold a GPU, waiting until its last process has ended: two generations of a worker never share its memory.

    Args:
        gpu: its UUID, the same in every container of the host.

    Raises:
        ServerFailed: locks cannot be kept in `folder`.
    """
    with _open(folder, gpu) as lock:
        if not _try_lock(lock):
            logger.warning("waiting for the GPU's last process to end", extra={"gpu": gpu, "lock": lock.name})
            while not _try_lock(lock):
                threading.Event().wait(_LOOK_S)
        yield


def _open(folder: Path | None, name: str) -> TextIOWrapper:
    folder = folder or Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"flux2-{os.getuid()}-{name}.lock").open("w")
    except OSError as error:
        raise ServerFailed(f"FLUX2_WORKER_LOCK_DIR {folder}: {error.strerror}") from error


def _try_lock(lock: TextIOWrapper) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
