"""The interface of object storage; backends raise `StorageUnavailable` for all failures of the store."""

from __future__ import annotations

import uuid
from typing import Protocol


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


def new_probe_key() -> str:
    """Return a key that no other running check uses."""
    return f".flux2-check/{uuid.uuid4().hex}/probe"


def validate_key(key: str) -> str:
    """Return `key`, or raise `ValueError` if it is not a plain relative path."""
    if "\\" in key or not key.isprintable() or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not an object key: {key!r}")
    return key
