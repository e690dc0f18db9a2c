"""Open the file that a source names: the one place that knows every kind of source."""

from __future__ import annotations

import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING

from shared.errors import AdapterRefused
from shared.sources.remote_file import Pin, RemoteFile
from shared.sources.source import FIELD, HttpsFile, HubFile, LocalFile, S3Object, Source, UploadedFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from shared.network.guarded_client import GuardedClient
    from shared.settings import S3Settings, Settings
    from shared.sources.uploads import Uploads
    from shared.storage import FileStore


class Sources:
    """Opens remote files with the operator's settings and credentials; threads share one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.sources
        self._all = settings

    def open(self, source: Source, *, pin: Pin | None = None, sha256: str | None = None) -> RemoteFile:
        """Open a file without reading it; one request asks for its size and identity.

        Args:
            pin: what the file must be, from an earlier call. Default: the file that is there now.
            sha256: the digest that the file must have; whoever has all bytes checks it.

        Raises:
            AdapterNotFound, AdapterRefused: the source names no file, or none that may be read.
            SourceChanged: the file is not the one of `pin`, or has another digest than `sha256`.
            SourceUnavailable: the source does not answer, or asks to come back later.
        """
        if self._settings.local_only and not isinstance(source, LocalFile):
            raise AdapterRefused(
                f"{source} is not on this host, and FLUX2_SOURCES_LOCAL_ONLY allows no other files; name a path under "
                "the adapter root",
                field=FIELD,
            )
        match source:
            case HubFile():
                file = self._open_hub(source, pin)
            case S3Object():
                file = self._open_s3(source, pin)
            case HttpsFile():
                file = self._open_https(source, pin, sha256)
            case UploadedFile():
                from shared.sources.upload import open_upload

                file = open_upload(self.uploads, source, pin=pin)
            case LocalFile():
                raise ValueError(f"{source} is a local file: `shared.adapters.locate` finds it")
        if sha256 is not None and file.sha256 not in (None, sha256):
            raise AdapterRefused(f"{source} has the sha256 {file.sha256}, and the request states {sha256}", field=FIELD)
        return file

    def _open_hub(self, source: HubFile, pin: Pin | None) -> RemoteFile:
        # The hub's library takes 0.1 s to import.
        from shared.sources.hub_file import open_hub_file

        token, download_s = self._all.hub_token(), self._settings.download_s
        return open_hub_file(self._hub_client, source, token=token, download_s=download_s, pin=pin)

    def _open_s3(self, source: S3Object, pin: Pin | None) -> RemoteFile:
        from shared.sources.s3_object import open_s3_object
        from shared.sources.uploads import TENANTS_FOLDER

        # Whichever prefix it is below, and however the store reads an address with dots.
        if source.bucket == self._all.s3.bucket and TENANTS_FOLDER in source.key.split("/"):
            raise AdapterRefused(
                f"{source}: uploads of tenants are not read by their place in the bucket; write upload:NAME, as "
                "`flux2 adapters list` shows it",
                field=FIELD,
            )
        allowed = (self._settings.s3_buckets or self._all.s3.bucket).split(",")
        if not any(fnmatch.fnmatchcase(source.bucket, pattern.strip()) for pattern in allowed):
            raise AdapterRefused(
                f"{source}: files are not read from the bucket {source.bucket!r}; the operator lists buckets in "
                "FLUX2_SOURCES_S3_BUCKETS",
                field=FIELD,
            )
        return open_s3_object(self._s3_client, source, pin=pin)

    def _open_https(self, source: HttpsFile, pin: Pin | None, sha256: str | None) -> RemoteFile:
        from shared.sources.https_file import open_https

        stated = Pin("sha256", sha256) if sha256 else None
        return open_https(self._https_client, source, download_s=self._settings.download_s, pin=pin or stated)

    @cached_property
    def uploads(self) -> Uploads:
        """The files that callers uploaded to this service."""
        from shared.sources.uploads import Uploads

        return Uploads(self.own_store)

    @cached_property
    def own_store(self) -> FileStore:
        """The service's own object store, which gives up as early as other sources do."""
        from shared.storage import open_store

        # Callers wait for an answer, and whoever downloads tries again itself.
        retry_budget_s = min(self._all.storage.retry_budget_s, self._settings.timeout_s)
        storage = self._all.storage.model_copy(update={"retry_budget_s": retry_budget_s})
        return open_store(self._all.model_copy(update={"storage": storage, "s3": self._s3_settings}))

    @cached_property
    def _https_client(self) -> GuardedClient:
        from shared.network.guarded_client import GuardedClient

        return GuardedClient(
            allowed_hosts=self._settings.https_hosts,
            private_hosts=self._settings.private_hosts,
            headers=self._settings.https_headers,
            timeout_s=self._settings.timeout_s,
        )

    @cached_property
    def _hub_client(self) -> GuardedClient:
        """A client for the hub's own hosts, which gives its token to the hub alone."""
        from shared.network.guarded_client import GuardedClient
        from shared.network.hosts import HostHeaders, HostPatterns
        from shared.sources.hub_file import CONTENT_HOSTS, HUB_HOST, hub_place

        host, port = hub_place()
        token = self._all.hub_token()
        headers = HostHeaders().adding(host, port, "Authorization", f"Bearer {token}") if token else HostHeaders()
        private = self._settings.private_hosts
        return GuardedClient(
            # Also the hosts to which a mirror redirects, as the refusal of such a host says.
            allowed_hosts=HostPatterns((HUB_HOST, *CONTENT_HOSTS, *self._settings.https_hosts.patterns)),
            # A mirror is the operator's own host, and usually has a private address.
            private_hosts=private if host == HUB_HOST else private.adding(host, port),
            headers=headers,
            timeout_s=self._settings.timeout_s,
        )

    @cached_property
    def _s3_settings(self) -> S3Settings:
        # The upload of an image may wait longer for the store than a caller, or a canceled item, for a file.
        s3 = self._all.s3
        return s3.model_copy(update={"timeout_s": min(s3.timeout_s, self._settings.timeout_s)})

    @cached_property
    def _s3_client(self) -> S3Client:
        from shared.storage.s3_client import make_client

        s3 = self._s3_settings
        return make_client(s3, endpoint_url=s3.endpoint_url, credentials=self._all.aws_credentials())
