"""A plain RemoteFile over HTTP, and a process that fetches one through a cache; `test_shared_sources_cache` runs it."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shared.errors import AdapterNotFound, Flux2Error, SourceChanged, SourceUnavailable
from shared.sources.cache import FileCache
from shared.sources.remote_file import Pin

CHUNK = 64 * 1024


@dataclass(frozen=True)
class HttpFile:
    name: str
    size_bytes: int
    sha256: str | None
    pin: Pin

    def read(self, start: int, end: int) -> bytes:
        raise NotImplementedError

    def stream(self, start: int) -> Iterator[bytes]:
        with _get(self.name, "GET", {"Range": f"bytes={start}-", "If-Match": self.pin.value}) as answer:
            try:
                while chunk := answer.read(CHUNK):
                    yield chunk
            except (OSError, http.client.HTTPException) as error:
                raise SourceUnavailable(f"{self.name}: {error}") from error


def open_http(source: str, pin: str) -> HttpFile:
    with _get(source, "HEAD", {}) as answer:
        found = Pin("etag", answer.headers["ETag"])
        if str(found) != pin:
            raise SourceChanged(f"{source} has changed")
        return HttpFile(source, int(answer.headers["Content-Length"]), answer.headers["X-Sha256"], found)


def _get(url: str, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    try:
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        connection.request(method, parts.path, headers=headers)
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise SourceUnavailable(f"{url}: {error}") from error
    match answer.status:
        case 404:
            raise AdapterNotFound(f"{url}: no such file")
        case 412:
            raise SourceChanged(f"{url} has changed")
        case 200 | 206:
            return answer
    raise SourceUnavailable(f"{url}: HTTP {answer.status}")


def main() -> None:
    """Fetch one file and print what came of it; then keep it in use until standard input ends."""
    wanted = json.loads(sys.argv[1])
    limits = {name: wanted.pop(name) for name in ("max_bytes", "retry_budget_s")}
    cache = FileCache(Path(wanted.pop("folder")), open_file=open_http, **limits)
    sys.stdout.write("started\n")
    sys.stdout.flush()
    try:
        with cache.fetch(**wanted) as file:
            sys.stdout.write(json.dumps({"path": str(file.path), "fetched": file.fetched_bytes}) + "\n")
            sys.stdout.flush()
            sys.stdin.read()
    except Flux2Error as error:
        sys.stdout.write(json.dumps({"error": error.code, "message": str(error)}) + "\n")


if __name__ == "__main__":
    main()
