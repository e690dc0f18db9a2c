"""The interface of object storage; backends raise `StorageUnavailable` for all failures of the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

#: Smallest piece that `ObjectWriter.write` may get, except for the last one.
MIN_PIECE: Final = 5 * 1024**2
#: Largest number of pieces of one object.
MAX_PIECES: Final = 10_000
#: Bytes of the largest chunk that `FileStore.stream` yields.
MAX_CHUNK: Final = 1024**2


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing describes it.

    Attributes:
        modified_s: when it was stored, in seconds since the epoch, by the store's clock.
    """

    key: str
    size_bytes: int
    modified_s: float


class ObjectWriter(Protocol):
    """An object that is being written in pieces, of which nobody sees anything before `finish`.

    Its methods raise `StorageUnavailable`. Whoever opened it calls `finish` or `abort` at the end.
    """

    def write(self, piece: bytes) -> None:
        """Append a piece of at least `MIN_PIECE` bytes; the last one may be shorter."""

    def finish(self, key: str) -> None:
        """Make the object visible at `key` and replace the one there. At least one piece was written.

        If this raises, `abort` removes what is left, unless the store lost its answer.
        """

    def abort(self) -> None:
        """Remove what was written; after `finish` this does nothing."""


class ObjectStore(Protocol):
    """Whole objects under slash-separated keys such as `results/JOB/1/0.png`.

    A key that is empty, absolute or has an empty, `.` or `..` part raises `ValueError`: this project makes the keys, so
    that is a bug. The key with the store's prefix has to pass the same check. Every other failure raises
    `StorageUnavailable`, after the backend's retries.
    """

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store an object, replacing the one at `key`; readers see the old or the new object, never a part."""

    def url(self, key: str, *, expires_s: int) -> str:
        """Return a URL from which anyone can GET the object for `expires_s` seconds, 1 to 604,800.

        The URL is made without a request to the store, so the object need not exist.
        """

    def get(self, key: str) -> bytes:
        """Return an object's bytes; a missing object raises `StorageUnavailable` too."""

    def exists(self, key: str) -> bool:
        """Return whether there is an object at `key`."""

    def delete_prefix(self, prefix: str) -> int:
        """Delete every object below the folder `prefix`, a key of one or more parts; return how many there were."""

    def check(self) -> None:
        """Write, read and delete a probe, without retries.

        Raises:
            StorageUnavailable: one of the three failed; the message says which and why.
        """


class FileStore(ObjectStore, Protocol):
    """An `ObjectStore` that also holds files which do not fit into memory, and lists its keys."""

    def stat(self, key: str) -> StoredObject | None:
        """Return the size and time of the object at `key`; None if it does not exist."""

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, not including, `end`; fewer if the object ends before.

        Raises:
            ObjectMissing: there is no object at `key`.
        """

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to the end, in chunks of at most `MAX_CHUNK`, without retries.

        Raises:
            ObjectMissing: there is no object at `key`.
        """

    def open_writer(self, key: str, *, content_type: str) -> ObjectWriter:
        """Begin an object that does not fit into memory.

        Args:
            key: where it will be, if that is known; finishing it at another key costs a copy inside of the store.
        """

    def list_objects(self, prefix: str, *, after: str = "", limit: int) -> list[StoredObject]:
        """Return up to `limit` objects, at most 1,000, below the folder `prefix`, in the store's order of keys.

        Args:
            after: the last key of the page before.
        """

    def delete(self, key: str) -> None:
        """Delete the object at `key`, if there is one."""


def new_probe_key() -> str:
    """Return a key that no other running check uses."""
    return f".flux2-check/{uuid.uuid4().hex}/probe"


def validate_key(key: str) -> str:
    """Return `key`, or raise `ValueError` if it is not a plain relative path."""
    if "\\" in key or not key.isprintable() or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not an object key: {key!r}")
    return key
