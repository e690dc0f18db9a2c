"""Store objects as files, for tests and for a single host whose clients can read its disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared.errors import ObjectMissing, StorageUnavailable
from shared.metrics.definitions import STORAGE_ERRORS
from shared.metrics.tally import PROCESS
from shared.storage.protocol import MAX_CHUNK, StoredObject, new_probe_key, validate_key

_UNFINISHED = ".unfinished-"


class DirectoryStore:
    """A `FileStore` in a folder, which the first write creates."""

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

    def stat(self, key: str) -> StoredObject | None:
        path = self._path(key)
        with _storage_errors("read", key):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return StoredObject(key, status.st_size, status.st_mtime)

    def read(self, key: str, start: int, end: int) -> bytes:
        with _storage_errors("read", key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        with _storage_errors("read", key), self._path(key).open("rb") as file:
            file.seek(start)
            while chunk := file.read(MAX_CHUNK):
                yield chunk

    def open_writer(self, key: str, *, content_type: str) -> DirectoryWriter:
        """See `FileStore.open_writer`; the content type is not stored, because the file's name shows it."""
        return DirectoryWriter(self._path(key), self._path)

    def list_objects(self, prefix: str, *, after: str = "", limit: int) -> list[StoredObject]:
        folder = self._path(prefix)
        with _storage_errors("list", prefix):
            paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
            keys = {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in paths if _is_finished(path)}
            found = (self.stat(key) for key in sorted(key for key in keys if key > after)[:limit])
            return [entry for entry in found if entry is not None]

    def delete(self, key: str) -> None:
        with _storage_errors("delete", key):
            self._path(key).unlink(missing_ok=True)

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


class DirectoryWriter:
    """An `ObjectWriter`: a file that gets its name once it is complete and on the disk.

    Args:
        path: where the file will probably be; it is written in the same folder.
        find_path: returns the path of a key.
    """

    def __init__(self, path: Path, find_path: Callable[[str], Path]) -> None:
        self._find_path = find_path
        with _storage_errors("write", path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
        self._file = os.fdopen(descriptor, "wb")
        self._fresh = Path(name)

    def write(self, piece: bytes) -> None:
        with _storage_errors("write", self._fresh.name):
            self._file.write(piece)

    def finish(self, key: str) -> None:
        path = self._find_path(key)
        with _storage_errors("write", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            _publish(self._file, self._fresh, path)

    def abort(self) -> None:
        with _storage_errors("delete", self._fresh.name):
            self._file.close()
            self._fresh.unlink(missing_ok=True)


@contextmanager
def _storage_errors(verb: str, key: str) -> Iterator[None]:
    """Turn `OSError` into `StorageUnavailable`, which names the operation and the key but no path of this host."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissing(f"{verb} {key}: {error.strerror}") from error
    except OSError as error:
        PROCESS.count(STORAGE_ERRORS, verb)
        raise StorageUnavailable(f"{verb} {key}: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    """Replace the file at `path` in one step."""
    # After a crash the old or the new file exists completely: the data is on disk before the file gets its name.
    descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            _publish(file, fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _publish(file: BinaryIO, fresh: Path, path: Path) -> None:
    """Close a file that is complete, and rename it from `fresh` to `path`."""
    with file:
        file.flush()
        os.fsync(file.fileno())
    # mkstemp makes files that only the owner can read.
    fresh.chmod(0o644)
    fresh.replace(path)
    # The new name is on disk only once its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_finished(path: Path) -> bool:
    return not path.name.startswith(_UNFINISHED)


def _delete_below(folder: Path) -> int:
    """Delete the folder and its content; return the number of objects, without unfinished writes."""
    deleted = 0
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            (Path(parent) / name).unlink()
            deleted += _is_finished(Path(name))
        Path(parent).rmdir()
    return deleted
