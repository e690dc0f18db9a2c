"""A file at a URL, whose size and pin are known: what the hub and plain web servers have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shared.sources.http_ranges import HttpRanges
from shared.sources.remote_file import Pin


@dataclass(frozen=True)
class HttpRemoteFile:
    """A `RemoteFile` over HTTP.

    Attributes:
        ranges: reads parts of the file.
        download_s: seconds that `stream` may take for all of it.
        etag: strong ETag that each later answer must have, if the host states one.
        beginning: the first bytes, if they came with the answer that opened the file.
    """

    ranges: HttpRanges
    size_bytes: int
    sha256: str | None
    pin: Pin
    download_s: float
    etag: str | None = None
    beginning: bytes = b""

    @property
    def name(self) -> str:
        return self.ranges.name

    def read(self, start: int, end: int) -> bytes:
        if end <= max(start, len(self.beginning)):
            return self.beginning[start:end]
        total_s = self.ranges.client.timeout_s
        with self.ranges.open(start, end, total_s=total_s, size_bytes=self.size_bytes, etag=self.etag) as part:
            return b"".join(part.chunks)

    def stream(self, start: int) -> Iterator[bytes]:
        if start >= self.size_bytes:
            return
        with self.ranges.open(start, None, total_s=self.download_s, size_bytes=self.size_bytes, etag=self.etag) as part:
            yield from part.chunks
