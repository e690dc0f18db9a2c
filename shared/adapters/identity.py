"""Name an adapter by the sha256 of its bytes: a path says where it was found, never what it is."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from shared.errors import AdapterNotFound, AdapterRefused

_CACHED_FILES = 1024

# Path, device, inode, size, mtime_ns, ctime_ns. The ctime tells a file that was replaced with its times kept.
_Stamp = tuple[str, int, int, int, int, int]


class _Cache:
    """The digests of the files last asked for; hashing the same 1 GB file per request would cost about a second."""

    def __init__(self, size: int) -> None:
        self._digests: OrderedDict[_Stamp, str] = OrderedDict()
        self._lock = Lock()
        self._size = size

    def get(self, stamp: _Stamp) -> str | None:
        with self._lock:
            if stamp in self._digests:
                self._digests.move_to_end(stamp)
            return self._digests.get(stamp)

    def put(self, stamp: _Stamp, digest: str) -> None:
        with self._lock:
            self._digests[stamp] = digest
            while len(self._digests) > self._size:
                self._digests.popitem(last=False)


_cache = _Cache(_CACHED_FILES)


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in lower-case hex; a file seen before and unchanged since is not read again.

    Raises:
        AdapterNotFound: no such file.
        AdapterRefused: it cannot be read, or it changed while it was read (an upload still under way).
    """
    try:
        stamp = _stamp(path, path.stat())
        return _cache.get(stamp) or _hash(path)
    except FileNotFoundError as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except OSError as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error.strerror}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        before = _stamp(path, os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _stamp(path, os.fstat(file.fileno())) != before:
            raise AdapterRefused(f"{path.name}: the file changed while it was read; submit again when it is complete")
    _cache.put(before, digest)
    return digest


def _stamp(path: Path, info: os.stat_result) -> _Stamp:
    return (str(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
