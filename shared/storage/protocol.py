"""What the rest of the project asks of object storage; the backends and their failures stay behind it."""

from __future__ import annotations

import uuid
from typing import Protocol


class ObjectStore(Protocol):
    """Whole objects under slash-separated keys such as `results/JOB/1/0.png`.

    Keys are made by this project, never by callers; one that is empty, absolute or holds an empty, `.` or `..` part
    is a `ValueError`. Everything else that goes wrong is `StorageUnavailable`, after whatever retries the backend does.
    """

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store an object, replacing the one at `key`; readers see the old or the new one, never a part."""

    def url(self, key: str, *, expires_s: int) -> str:
        """Return a URL from which anyone can GET the object for `expires_s` seconds, 1 to 604,800.

        Nothing is asked of the store, so the object need not exist.
        """

    def get(self, key: str) -> bytes:
        """Return an object's bytes; that there is none is `StorageUnavailable` too."""

    def exists(self, key: str) -> bool:
        """Whether there is an object at `key`."""

    def delete_prefix(self, prefix: str) -> int:
        """Delete every object below the folder `prefix`, which is a key of one or more parts; return how many."""

    def check(self) -> None:
        """Write, read and delete a probe, without retries.

        Raises:
            StorageUnavailable: one of them failed; the message says which and why.
        """


def new_probe_key() -> str:
    """Name a probe that no other one running at the same time deletes."""
    return f".flux2-check/{uuid.uuid4().hex}/probe"


def validate_key(key: str) -> str:
    """Return `key`, or raise `ValueError` if it is not a plain relative path."""
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not an object key: {key!r}")
    return key
