"""Fetch from the hosts that an operator allows, and from no others, whatever names and redirects lead there.

Redirects are followed by hand: each of them is checked like the first URL, its name is resolved once, and the
connection goes to an address that was checked. A token goes only to the host and port that it was set for.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin

import httpcore2

from shared.errors import AdapterRefused, SourceUnavailable
from shared.network.addresses import GuardedBackend, host_header, is_refusal
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.network.url_guard import HOSTS_SETTING, CheckedUrl, UrlGuard

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset(
    (
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    )
)


@dataclass(frozen=True)
class Answer:
    """The answer of the last host, whose body was not read yet.

    Attributes:
        place: the host that answered, as messages name it.
        headers: by name in lower case. They come from the other side: put none of them into a message.
        chunks: the body as it arrives. It raises `SourceUnavailable` if the connection breaks or time is over.
    """

    place: str
    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class GuardedClient:
    """Sends GET requests; several threads may share it."""

    def __init__(
        self,
        *,
        allowed_hosts: HostPatterns,
        private_hosts: PrivateHosts,
        headers: HostHeaders,
        timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
        hosts_setting: str = HOSTS_SETTING,
    ) -> None:
        """Make the client.

        Args:
            allowed_hosts: hosts that may be fetched from at public addresses, with https.
            private_hosts: hosts that may also have private addresses and serve http.
            headers: a header for each of some hosts.
            timeout_s: seconds that one connection, and one piece of a body, may take.
            ssl_context: decides which certificates are trusted. Default: those of this host.
            hosts_setting: the setting that a refusal of another host names.
        """
        self._guard = UrlGuard(allowed_hosts, private_hosts, hosts_setting)
        self._headers = headers
        self._timeout_s = timeout_s
        self._given_tls = ssl_context

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], *, total_s: float) -> Generator[Answer]:
        """Send a GET request, follow redirects, and yield the answer; the connection ends with the context.

        Args:
            headers: sent to every host on the way: no tokens.
            total_s: seconds that all of it may take, from the first name to the last byte.

        Raises:
            AdapterRefused: this or a later URL may not be fetched, or redirects do not end.
            SourceUnavailable: a host has no usable address, does not answer in time, or breaks the connection.
        """
        deadline = time.monotonic() + total_s
        checked = self._guard.check(url)
        for _ in range(_MAX_REDIRECTS + 1):
            with self._send(checked, headers, deadline=deadline) as answer:
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                url = _redirect_target(answer, base=url)
                checked = self._guard.check(url, came_from=answer.place)
        raise AdapterRefused(
            f"{answer.place} is the end of {_MAX_REDIRECTS} redirects and redirects again; use the link to the file",
            field="path",
        )

    @contextmanager
    def _send(self, url: CheckedUrl, headers: Mapping[str, str], *, deadline: float) -> Generator[Answer]:
        """Send one request and yield its answer, also if that is a redirect."""
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise _too_slow(url)
        # Of the answer's head all together: a host that drips it would hold a download that nothing can cancel.
        head_s = min(self._timeout_s, remaining_s)
        backend = GuardedBackend(allow_private=url.may_be_private, timeout_s=head_s)
        timeouts = dict.fromkeys(("connect", "read", "write"), head_s)
        with (
            _described_failures(url),
            httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
            pool.stream(
                "GET",
                httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
                headers=list(self._all_headers(url, headers).items()),
                extensions={"timeout": timeouts},
            ) as response,
        ):
            backend.extend(deadline - time.monotonic())
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            yield Answer(url.place, response.status, found, _described_chunks(url, response.iter_stream()))

    def _all_headers(self, url: CheckedUrl, headers: Mapping[str, str]) -> dict[str, str]:
        authority = f"[{url.host}]" if ":" in url.host else url.host
        made = {
            "Host": host_header(f"{url.scheme}://{authority}:{url.port}/"),
            "User-Agent": "flux2-queue",
            "Accept": "*/*",
            # Compressed bytes are not the file's, and may unpack to any size.
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        own = self._headers.get(url.host, url.port)
        return {**made, own[0]: own[1]} if own else made

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        # Once: reading the certificates takes 20 ms.
        return self._given_tls or httpcore2.default_ssl_context()


def _redirect_target(answer: Answer, *, base: str) -> str:
    location = answer.headers.get("location", "")
    # `urljoin` drops some of these without a word, and so would read another address than a stricter parser.
    if not location or not location.isascii() or not location.isprintable() or set(location) & set(" \\"):
        raise AdapterRefused(f"{answer.place} redirects to no usable address; use the link to the file", field="path")
    try:
        # A fragment is for the one who follows the link; it is never sent.
        return urljoin(base, location.partition("#")[0])
    except ValueError:
        raise AdapterRefused(
            f"{answer.place} redirects to no usable address; use the link to the file", field="path"
        ) from None


def _described_chunks(url: CheckedUrl, chunks: Iterator[bytes]) -> Iterator[bytes]:
    with _described_failures(url):
        yield from chunks


@contextmanager
def _described_failures(url: CheckedUrl) -> Generator[None]:
    """Turn httpcore2's errors into ours; the text of some of them is what the other side sent."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise _too_slow(url) from error
    except httpcore2.ConnectError as error:
        if is_refusal(error):
            raise AdapterRefused(
                f"{url.place} has an address that is not public, so nothing is read from it; the operator lists hosts "
                "of a private network in FLUX2_SOURCES_PRIVATE_HOSTS",
                field="path",
            ) from error
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise SourceUnavailable(
                f"{url.place} shows a certificate that is not trusted or not for this name; the operator names the "
                "authority of an own host in SSL_CERT_FILE"
            ) from error
        # Written by `shared.network.addresses` or by the operating system.
        raise SourceUnavailable(f"{url.place} cannot be connected to: {str(error)[:200]}") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError):
        # Without the cause: it quotes the other side's bytes, which may be the signature of a redirect.
        raise SourceUnavailable(f"{url.place} broke the connection, or does not speak HTTP; try again later") from None


def _too_slow(url: CheckedUrl) -> SourceUnavailable:
    return SourceUnavailable(f"{url.place} took too long to answer; try again later")
