"""Read parts of a file over HTTP, and believe an answer only if it is exactly the part that was asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from shared.errors import AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable
from shared.network.guarded_client import Answer, GuardedClient

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_WEB_PAGES: Final = ("text/html", "application/xhtml+xml")
_PAGE_STARTS: Final = (b"<!doctype html", b"<html")
_NO_LOGIN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_GONE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
# 500 and above too; the others say that the same request may succeed later.
_LATER: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
# Seconds before the second and the third attempt: a proxy that is restarted answers 502 for that long.
_PAUSES_S: Final = (0.2, 0.8)


@dataclass(frozen=True)
class Part:
    """The beginning of an answer that holds the part asked for.

    Attributes:
        size_bytes: size of the whole file.
        etag: a strong ETag with its quotes, or None if the host states none.
        chunks: exactly the bytes that were asked for, or an error.
    """

    size_bytes: int
    etag: str | None
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class HttpRanges:
    """The parts of one file at a URL.

    Attributes:
        name: the file in messages; it holds no secret.
        url: where the file is; it may hold a secret.
        token_hint: the setting for a host that asks for a login.
    """

    client: GuardedClient
    url: str = field(repr=False)
    name: str
    token_hint: str = "FLUX2_SOURCES_HTTPS_HEADERS"

    @contextmanager
    def open(
        self, start: int, end: int | None, *, total_s: float, size_bytes: int | None = None, etag: str | None = None
    ) -> Generator[Part]:
        """Ask for the bytes from `start` up to, not including, `end`, or to the end of the file.

        A host that cannot answer now is asked up to three times.

        Args:
            total_s: seconds for the whole answer, its body too.
            size_bytes: size that the file must have.
            etag: strong ETag that the file must have.

        Raises:
            SourceChanged: the file has another size or ETag.
            SourceUnavailable, AdapterNotFound, AdapterRefused: the host gave no such part.
        """
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        if etag is not None:
            headers["If-Match"] = etag
        with self._ask(headers, total_s=total_s) as answer:
            yield self._check(answer, start, end, size_bytes=size_bytes, etag=etag)

    def read_whole(self, *, total_s: float, check: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the whole file as it arrives, also from a host that knows no ranges and states no size.

        Args:
            total_s: seconds for the whole answer, its body too.
            check: is called with the stated size, if there is one, and with the number of bytes so far; it raises if
                they are too many.

        Raises:
            SourceUnavailable, AdapterNotFound, AdapterRefused: the host gave no such file.
        """
        with self._ask({}, total_s=total_s) as answer:
            self._check_status(answer)
            self._check_kind(answer)
            if answer.status != HTTPStatus.OK:
                raise self._refused(f"{answer.place} answered with a part of the file; use another host")
            length = answer.headers.get("content-length", "")
            if length.isascii() and length.isdecimal() and len(length) < 20:
                check(int(length))
            size = 0
            for chunk in answer.chunks:
                size += len(chunk)
                check(size)
                yield chunk

    @contextmanager
    def _ask(self, headers: Mapping[str, str], *, total_s: float) -> Generator[Answer]:
        """Send a request, up to three times to a host that cannot answer now."""
        deadline = time.monotonic() + total_s
        for pause_s in (*_PAUSES_S, None):
            with self.client.get(self.url, headers, total_s=deadline - time.monotonic()) as answer:
                if not _asks_for_patience(answer.status):
                    yield answer
                    return
            if pause_s is None or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        raise SourceUnavailable(f"{self.name}: {answer.place} answered {answer.status}; try again later")

    def _check(self, answer: Answer, start: int, end: int | None, *, size_bytes: int | None, etag: str | None) -> Part:
        self._check_status(answer)
        self._check_kind(answer)
        first, last, size = self._extent(answer, start)
        found = strong_etag(answer.headers)
        if size_bytes not in (None, size) or etag not in (None, found):
            raise self._changed(answer)
        wanted_last = size - 1 if end is None else min(end, size) - 1
        if answer.status == HTTPStatus.OK and last > wanted_last:
            raise self._no_ranges(answer)
        if (first, last) != (start, wanted_last):
            raise self._refused(f"{answer.place} answered with other bytes than it was asked for")
        return Part(size, found, self._exactly(answer, first, last))

    def _check_status(self, answer: Answer) -> None:
        status = answer.status
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return
        if status == HTTPStatus.PRECONDITION_FAILED:
            raise self._changed(answer)
        if status in _NO_LOGIN:
            raise AdapterNotFound(
                f"{self.name}: {answer.place} answered {status}; if the file needs a login, the operator sets "
                f"{self.token_hint}",
                field="path",
            )
        if status in _GONE:
            raise AdapterNotFound(f"{self.name}: {answer.place} answered {status}; check the link", field="path")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._refused(f"{answer.place} has a file that is empty or shorter than it was")
        raise self._refused(f"{answer.place} answered {status}; use a link that starts a download")

    def _check_kind(self, answer: Answer) -> None:
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _WEB_PAGES:
            raise self._web_page(answer)
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise self._refused(f"{answer.place} compresses the file, although it was asked not to; use another host")

    def _extent(self, answer: Answer, start: int) -> tuple[int, int, int]:
        """Return the first and last byte of an answer, and the size of the file."""
        if answer.status == HTTPStatus.OK:
            length = answer.headers.get("content-length", "")
            # Some hosts answer a range that is the whole file without a range.
            if start == 0 and length.isascii() and length.isdecimal() and len(length) < 20:
                return 0, int(length) - 1, int(length)
            raise self._no_ranges(answer)
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
        if match is None:
            raise self._no_ranges(answer)
        first, last, size = map(int, match.groups())
        return first, last, size

    def _exactly(self, answer: Answer, first: int, last: int) -> Iterator[bytes]:
        """Yield the bytes of a body, which must be as many as asked for; never a byte more."""
        left = size_bytes = last + 1 - first
        for chunk in answer.chunks:
            if (first, left) == (0, size_bytes) and chunk.lstrip()[:14].lower().startswith(_PAGE_STARTS):
                raise self._web_page(answer)
            if len(chunk) > left:
                raise self._refused(f"{answer.place} sent more bytes than it was asked for")
            left -= len(chunk)
            yield chunk
        if left:
            raise SourceUnavailable(f"{self.name}: {answer.place} broke off {left} bytes too early; try again later")

    def _changed(self, answer: Answer) -> SourceChanged:
        return SourceChanged(
            f"{self.name}: {answer.place} has another file there than when the job was accepted; submit again, or name "
            "the file's `sha256` if only the host's ETag differs",
            field="path",
        )

    def _no_ranges(self, answer: Answer) -> AdapterRefused:
        return self._refused(
            f"{answer.place} serves no parts of files (HTTP ranges); use the hub, S3, an upload or another host"
        )

    def _web_page(self, answer: Answer) -> AdapterRefused:
        return self._refused(
            f"{answer.place} answered with a web page; use the link that starts the download, or if that asks for a "
            f"login, the operator sets {self.token_hint}"
        )

    def _refused(self, reason: str) -> AdapterRefused:
        return AdapterRefused(f"{self.name}: {reason}", field="path")


def strong_etag(headers: Mapping[str, str]) -> str | None:
    """Return the ETag with its quotes if it is strong: equal ETags then mean equal bytes."""
    etag = headers.get("etag", "").strip()
    return etag if _STRONG_ETAG.fullmatch(etag) else None


def _asks_for_patience(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _LATER
