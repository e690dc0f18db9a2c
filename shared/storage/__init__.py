"""Where images go: one protocol, two backends."""

from __future__ import annotations

from shared.settings import Settings
from shared.storage.directory import DirectoryStore
from shared.storage.protocol import ObjectStore

__all__ = ["ObjectStore", "open_store"]


def open_store(settings: Settings) -> ObjectStore:
    """Return the store that the settings name; nothing is asked of it yet (see `ObjectStore.check`)."""
    if settings.storage.backend == "directory":
        return DirectoryStore(settings.storage.directory, prefix=settings.storage.prefix)
    # boto3 takes 0.2 s to import, which a command that needs no store should not pay.
    from shared.storage.s3 import S3Store

    return S3Store(
        settings.s3,
        credentials=settings.aws_credentials(),
        prefix=settings.storage.prefix,
        retry_budget_s=settings.storage.retry_budget_s,
    )
