"""Store objects as files, for tests and for a single host whose clients can read its disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import StorageUnavailable
from shared.storage.protocol import new_probe_key, validate_key

_UNFINISHED = ".unfinished-"


class DirectoryStore:
    """An `ObjectStore` in a folder, which the first write creates."""

    def __init__(self, root: Path, *, prefix: str = "") -> None:
        self._root = root.absolute()
        self._prefix = prefix

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """See `ObjectStore.put`; the content type is not stored, because the file's name shows it."""
        path = self._path(key)
        with _storage_errors("write", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)

    def url(self, key: str, *, expires_s: int) -> str:
        """Return a file:// URL, which does not expire."""
        return self._path(key).as_uri()

    def get(self, key: str) -> bytes:
        with _storage_errors("read", key):
            return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def delete_prefix(self, prefix: str) -> int:
        folder = self._path(prefix)
        with _storage_errors("delete", prefix):
            return _delete_below(folder) if folder.is_dir() else 0

    def check(self) -> None:
        key = new_probe_key()
        self.put(key, b"flux2", content_type="application/octet-stream")
        if self.get(key) != b"flux2":
            raise StorageUnavailable(f"read {key}: got other bytes than were written")
        self.delete_prefix(key.rpartition("/")[0])

    def _path(self, key: str) -> Path:
        # The whole path, because the prefix could lead out of the folder too.
        return self._root / validate_key(f"{self._prefix}{validate_key(key)}")


@contextmanager
def _storage_errors(verb: str, key: str) -> Iterator[None]:
    """Turn `OSError` into `StorageUnavailable`, which names the operation and the key but no path of this host."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"{verb} {key}: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    """Replace the file at `path` in one step."""
    # After a crash the old or the new file exists completely: the data is on disk before the file gets its name.
    descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner can read.
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    # The new name is on disk only once its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _delete_below(folder: Path) -> int:
    """Delete the folder and its content; return the number of objects, without unfinished writes."""
    deleted = 0
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            (Path(parent) / name).unlink()
            deleted += not name.startswith(_UNFINISHED)
        Path(parent).rmdir()
    return deleted
