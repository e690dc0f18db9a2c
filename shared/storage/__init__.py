"""The storage of images and uploaded adapters: one interface, two backends."""

from __future__ import annotations

from shared.settings import Settings
from shared.storage.directory import DirectoryStore
from shared.storage.protocol import FileStore, ObjectStore

__all__ = ["FileStore", "ObjectStore", "open_store"]


def open_store(settings: Settings) -> FileStore:
    """Return the configured store, without contacting it; `ObjectStore.check` does that."""
    if settings.storage.backend == "directory":
        return DirectoryStore(settings.storage.directory, prefix=settings.storage.prefix)
    # boto3 takes 0.2 s to import; commands that need no store should not wait for it.
    from shared.storage.s3 import S3Store

    return S3Store(
        settings.s3,
        credentials=settings.aws_credentials(),
        prefix=settings.storage.prefix,
        retry_budget_s=settings.storage.retry_budget_s,
    )
