"""Identify an adapter by the sha256 of its bytes, because the file at a path can change.

Hashing a file of 1 GB takes about a second, so the digest of an unchanged file is kept. A file is recognised by its
size and times, which are only as fine as the clock of its file system: a file that is rewritten within the same tick
looks unchanged. A digest is therefore kept only if its hashing began at least one tick after the file was first seen
with these times. Any later write gets a later time.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock

from cachetools import LRUCache

from shared.adapters.opened import Stamp, open_adapter, raise_changed, stamp_of

_CACHED_FILES = 1024

# Kernels tick every 1 to 10 ms. FAT counts in steps of two seconds, other old file systems in whole seconds.
_FINE_TICK_S = 0.02
_COARSE_TICK_S = 2.0
# Older than any difference between the clocks of this host and of a file server.
_SETTLED_S = 60.0


@dataclass(frozen=True)
class Identity:
    """The digest, in lower-case hex, and the size of a file."""

    sha256: str
    size_bytes: int


@dataclass
class _KnownFile:
    """The digest of a file with one stamp; None until it is final.

    Attributes:
        lock: held while the file is hashed, so that concurrent requests hash it once.
    """

    first_seen_s: float
    digest: str | None = None
    lock: Lock = field(default_factory=Lock)


_digests: LRUCache[Stamp, _KnownFile] = LRUCache(_CACHED_FILES)
_lock = Lock()


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in lower-case hex; a file that has not changed since the last call is not read again.

    Raises:
        AdapterNotFound, AdapterRefused: see `open_adapter`.
    """
    with open_adapter(path) as file:
        return identify(file).sha256


def identify(file: FileIO) -> Identity:
    """Return the identity of an open adapter file, which is read only if it is new or has changed.

    Raises:
        AdapterRefused: the file changed while it was read, as during an upload.
    """
    stamp = stamp_of(file)
    with _lock:
        known = _digests.setdefault(stamp, _KnownFile(time.monotonic()))
    # Not under the lock of all files: a large file delays no other request.
    with known.lock:
        digest = known.digest or _hash(file, stamp, known)
    return Identity(digest, stamp.size_bytes)


def _hash(file: FileIO, stamp: Stamp, known: _KnownFile) -> str:
    is_final = _await_tick(stamp, known.first_seen_s)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp_of(file) != stamp:
        raise_changed(file)
    if is_final:
        known.digest = digest
    return digest


def _await_tick(stamp: Stamp, first_seen_s: float) -> bool:
    """Wait until a write must change the stamp; return False if that takes longer than reading the file again may."""
    if time.time() - stamp.ctime_ns / 1e9 > _SETTLED_S:
        return True
    # A file system that counts in seconds leaves no digits after the point.
    tick_s = _COARSE_TICK_S if stamp.ctime_ns % 10**9 == 0 else _FINE_TICK_S
    left_s = first_seen_s + tick_s - time.monotonic()
    if left_s > _FINE_TICK_S:
        return False
    time.sleep(max(0.0, left_s))
    return True
