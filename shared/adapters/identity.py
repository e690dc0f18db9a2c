"""Identify an adapter by the sha256 of its bytes, because the file at a path can change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Lock

from cachetools import LRUCache

from shared.errors import AdapterNotFound, AdapterRefused

_CACHED_FILES = 1024

# Path, device, inode, size, mtime_ns, ctime_ns. Only the ctime changes when a file is replaced by one with its times.
_Stamp = tuple[str, int, int, int, int, int]

# Hashing a 1 GB file takes about a second, which every request for it would pay.
_digests: LRUCache[_Stamp, str] = LRUCache(_CACHED_FILES)
_lock = Lock()


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in lower-case hex; a file that has not changed since the last call is not read again.

    Raises:
        AdapterNotFound: no such file.
        AdapterRefused: the file cannot be read, or it changed while it was read, as during an upload.
    """
    try:
        stamp = _stamp(path, path.stat())
        with _lock:
            digest = _digests.get(stamp)
        return digest or _hash(path)
    except FileNotFoundError as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except OSError as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error.strerror}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        # The stamps around the read must agree: an upload may still be writing.
        before = _stamp(path, os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _stamp(path, os.fstat(file.fileno())) != before:
            raise AdapterRefused(f"{path.name}: the file changed while it was read; submit again when it is complete")
    # Hashing runs without the lock, so that a large file blocks no other request.
    with _lock:
        _digests[before] = digest
    return digest


def _stamp(path: Path, info: os.stat_result) -> _Stamp:
    return (str(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
