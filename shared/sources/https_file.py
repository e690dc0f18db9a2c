"""Open a file on a web server: one ranged request says its size, its identity and its first bytes."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from shared.errors import AdapterRefused
from shared.network.guarded_client import GuardedClient
from shared.sources.http_ranges import HttpRanges
from shared.sources.http_remote_file import HttpRemoteFile
from shared.sources.remote_file import Pin
from shared.sources.source import HttpsFile

# Most adapters' headers are shorter, so a submit needs no second request.
_FIRST_BYTES: Final = 128 * 1024


def open_https(
    client: GuardedClient, source: HttpsFile, *, download_s: float, pin: Pin | None = None
) -> HttpRemoteFile:
    """Ask a web server for the beginning of a file, and return the file.

    Args:
        download_s: seconds that `stream` may take for all of it.
        pin: what the file must be: an `etag`, or the `sha256` that the caller stated. Default: the strong ETag that it
            has now. A sha256 is checked by whoever has all bytes.

    Raises:
        AdapterRefused: the URL may not be fetched, the answer is no file, or nothing pins it.
        AdapterNotFound: the server has no such file, or not without a login.
        SourceChanged: the file is not the one of the pin.
        SourceUnavailable: the server does not answer in time, or asks to come back later.
    """
    ranges = HttpRanges(client, source.url, _shown(source.url))
    etag = pin.value if pin is not None and pin.kind == "etag" else None
    with ranges.open(0, _FIRST_BYTES, total_s=client.timeout_s, etag=etag) as part:
        if pin is None and part.etag is None:
            raise AdapterRefused(
                f"{ranges.name}: the host states no strong ETag, so a change of the file would not be noticed; add the "
                "file's `sha256` to the request, or upload the file",
                field="path",
            )
        return HttpRemoteFile(
            ranges,
            part.size_bytes,
            sha256=pin.value if pin is not None and pin.kind == "sha256" else None,
            pin=pin or Pin("etag", part.etag or ""),
            download_s=download_s,
            # A host with several stores may state another ETag for the same bytes each time; a digest decides alone.
            etag=part.etag if pin is None or pin.kind == "etag" else None,
            beginning=b"".join(part.chunks),
        )


def _shown(url: str) -> str:
    """Return a URL for messages, without its query, which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"[:300]
