"""Fetch reference images from where a request says that they are: whole, at once, and within bounds."""

from __future__ import annotations

import time
from functools import cached_property, partial
from threading import BoundedSemaphore
from typing import Final
from urllib.parse import urlsplit

from shared.errors import ReferenceRefused, SourceUnavailable
from shared.network.guarded_client import GuardedClient
from shared.network.hosts import HostPatterns
from shared.reference_source import RemoteImage, check_size
from shared.settings import Settings
from shared.sources.http_ranges import HttpRanges
from shared.sources.source import HttpsFile
from shared.sources.sources import Sources

# Each holds an image of up to FLUX2_REFERENCES_MAX_BYTES.
_MAX_FETCHES: Final = 12
_SHOWN_CHARS: Final = 300


class ReferenceFetcher:
    """Fetches images with the operator's settings and credentials, a few at a time; threads share one."""

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._fetches = BoundedSemaphore(_MAX_FETCHES)

    def fetch(self, source: RemoteImage, *, deadline: float) -> bytes:
        """Return the bytes of an image, which nobody has checked yet.

        Args:
            deadline: time on the monotonic clock after which no request is sent or goes on.

        Raises:
            ReferenceRefused: the settings allow no such file, or it is too large.
            AdapterNotFound, AdapterRefused: see `Sources.open`.
            SourceUnavailable: the source does not answer in time, or asks to come back later.
        """
        if self._settings.sources.local_only:
            raise ReferenceRefused(
                "FLUX2_SOURCES_LOCAL_ONLY allows no files of other hosts; put the image into the request, or upload it "
                "with POST /v1/uploads"
            )
        if not self._fetches.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _too_slow()
        try:
            if isinstance(source, HttpsFile):
                return self._fetch_https(source, deadline)
            return self._fetch_stated(source, deadline)
        finally:
            self._fetches.release()

    def _fetch_https(self, source: HttpsFile, deadline: float) -> bytes:
        ranges = HttpRanges(self._client, source.url, _shown(source.url))
        check = partial(check_size, max_bytes=self._settings.references.max_bytes)
        return b"".join(ranges.read_whole(total_s=deadline - time.monotonic(), check=check))

    def _fetch_stated(self, source: RemoteImage, deadline: float) -> bytes:
        """Fetch from a source that states a file's size before it sends the file."""
        file = self._sources.open(source)
        check_size(file.size_bytes, max_bytes=self._settings.references.max_bytes)
        if time.monotonic() > deadline:
            raise _too_slow()
        return file.read(0, file.size_bytes) if file.size_bytes else b""

    @cached_property
    def _client(self) -> GuardedClient:
        sources = self._settings.sources
        own = self._settings.references.https_hosts
        return GuardedClient(
            allowed_hosts=HostPatterns((*sources.https_hosts.patterns, *own.patterns)),
            private_hosts=sources.private_hosts,
            headers=sources.https_headers,
            timeout_s=sources.timeout_s,
            hosts_setting="FLUX2_REFERENCES_HTTPS_HOSTS",
        )


def _shown(url: str) -> str:
    """Return a URL for messages, without its query, which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:_SHOWN_CHARS]


def _too_slow() -> SourceUnavailable:
    return SourceUnavailable(
        "the hosts of the request's files take too long to answer; try again later, name fewer images, or upload them"
    )
