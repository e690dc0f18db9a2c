"""Load reference images from the object store, where the API stored them when it accepted their job."""

from __future__ import annotations

from functools import partial
from hashlib import sha256 as hash_sha256

from shared.errors import ObjectMissing, ReferenceRefused
from shared.references import LoadReference, reference_key
from shared.storage import ObjectStore


def reference_loader(store: ObjectStore) -> LoadReference:
    """Return a function that loads reference images from `store`; threads may share it."""
    return partial(_load, store)


def _load(store: ObjectStore, sha256: str) -> bytes:
    try:
        data = store.get(reference_key(sha256))
    except ObjectMissing as error:
        raise ReferenceRefused(
            f"the store no longer has the image with the sha256 {sha256}; submit the request with the image again"
        ) from error
    # Other bytes would give another picture than the caller asked for.
    if hash_sha256(data).hexdigest() != sha256:
        raise ReferenceRefused(
            f"the stored image does not have the sha256 {sha256} that was accepted; submit the request with the image "
            "again"
        )
    return data
