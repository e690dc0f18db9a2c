"""Keep reference images in the object store, by the sha256 of their bytes.

The API stores an image before it accepts the job that names it. Nothing deletes images: the store's own rules do, by
age. So an image that a job names again becomes young again.

All tenants share the images, of which each is stored once. Which tenant has which is an object without content worth
reading, `tenant_references/TENANT/SHA256`: for the others, an image does not exist before they send its bytes.
"""

from __future__ import annotations

import time
from typing import Final

from shared.reference_image import CheckedImage, check_image
from shared.references import reference_key
from shared.storage import FileStore
from shared.storage.protocol import StoredObject

# Younger images are not stored again. A rule that deletes images should leave them for several days.
_FRESH_S: Final = 86_400.0


class ReferenceStore:
    """The reference images in one store; every method may raise `StorageUnavailable`. Threads may share it.

    Args:
        tenant: whose images exist; None for those of all.
    """

    def __init__(self, store: FileStore, tenant: str | None = None) -> None:
        self._store = store
        self._tenant = tenant

    def of(self, tenant: str | None) -> ReferenceStore:
        """Return the same store with the images of a tenant."""
        return ReferenceStore(self._store, tenant)

    def put(self, image: CheckedImage, data: bytes) -> bool:
        """Store the bytes of an image unless they are there and fresh; return whether they are new."""
        found = self._store.stat(reference_key(image.sha256))
        # Another size: something damaged the object, and people are asked to send the image again.
        if found is None or _age_s(found) > _FRESH_S or found.size_bytes != image.size_bytes:
            self._store.put(reference_key(image.sha256), data, content_type=image.content_type)
        if self._tenant is None:
            return found is None
        was_there = self._is_own(image.sha256)
        self._mark(image.sha256)
        return not was_there

    def renew(self, sha256: str) -> bool:
        """Make a stored image young again; return whether there is one.

        Raises:
            ReferenceRefused: the stored bytes are no image.
        """
        found = self._find(sha256)
        if found is not None and _age_s(found) > _FRESH_S:
            data = self.get(sha256)
            self._store.put(reference_key(sha256), data, content_type=check_image(data).content_type)
        if found is not None and self._tenant is not None:
            self._mark(sha256)
        return found is not None

    def size_bytes(self, sha256: str) -> int | None:
        """Return the size of an image; None if it is not stored."""
        found = self._find(sha256)
        return None if found is None else found.size_bytes

    def get(self, sha256: str) -> bytes:
        """Return the bytes of an image; raises `ObjectMissing` if it is not stored."""
        return self._store.get(reference_key(sha256))

    def _find(self, sha256: str) -> StoredObject | None:
        return self._store.stat(reference_key(sha256)) if self._tenant is None or self._is_own(sha256) else None

    def _is_own(self, sha256: str) -> bool:
        return self._store.stat(self._mark_key(sha256)) is not None

    def _mark(self, sha256: str) -> None:
        """Note that the tenant has an image; the note is as young as the image."""
        found = self._store.stat(self._mark_key(sha256))
        if found is None or _age_s(found) > _FRESH_S:
            # One byte: some stores treat an empty object as a folder.
            self._store.put(self._mark_key(sha256), b".", content_type="application/octet-stream")

    def _mark_key(self, sha256: str) -> str:
        return f"tenant_references/{self._tenant}/{sha256}"


def _age_s(found: StoredObject) -> float:
    return time.time() - found.modified_s
