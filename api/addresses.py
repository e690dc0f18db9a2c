"""Which addresses the API may connect to on a caller's behalf, and a way to connect that cannot be talked out of it.

A name is resolved once, every address it has must be public, and the connection goes to an address that was looked at:
a name that answers differently a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore2

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also where it is an IPv4 address in IPv6 clothes."""
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inside is None and address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(inside)
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int, *, allow_private: bool) -> str:
    """Return one address of a host, as text.

    Raises:
        httpcore2.ConnectError: it has none, or one that is not public.
    """
    try:
        found = [ipaddress.ip_address(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"{host!r} has no address") from error
    refused = [address for address in found if not allow_private and not is_public(address)]
    if refused:
        raise httpcore2.ConnectError(f"{host!r} has the address {refused[0]}, which is not public")
    return str(found[0])


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects to addresses that `resolve` lets through, for `timeout_s` in all, whatever the other side does."""

    def __init__(self, *, allow_private: bool, timeout_s: float) -> None:
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        deadline = time.monotonic() + self._timeout_s
        address = resolve(host, port, allow_private=self._allow_private)
        return _Bounded(self._plain.connect_tcp(address, port, self._timeout_s, local_address), deadline)


class _Bounded(httpcore2.NetworkStream):
    """A stream with one deadline for all that happens on it: a receiver cannot hold a sender by dripping bytes."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left_s(httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left_s(httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left_s = self._left_s(httpcore2.ConnectTimeout)
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, left_s), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _left_s(self, late: type[Exception]) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise late("the receiver took too long")
        return left_s
