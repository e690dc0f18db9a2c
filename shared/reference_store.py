"""Keep the files of reference images in the object store, by their content."""

from __future__ import annotations

from shared.references import reference_key
from shared.storage import ObjectStore


def put_reference(store: ObjectStore, data: bytes, *, sha256: str, content_type: str) -> bool:
    """Store an image file that was checked; return whether it is new.

    A file that is there is stored again: rules that delete old objects then count from now.

    Raises:
        StorageUnavailable: the store did not answer.
    """
    key = reference_key(sha256)
    is_new = not store.exists(key)
    store.put(key, data, content_type=content_type)
    return is_new
