"""Connect to callers' URLs without reaching the private network (protection against SSRF).

A host name is resolved once, all its addresses must be public, and the connection goes to one of these addresses.
Resolving the name differently a moment later (DNS rebinding) has no effect.
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
    """Return whether an address belongs to the open internet; an embedded IPv4 address decides for an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        # The standard library supports the other three ways to embed an address, but not NAT64.
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
    # `is_global` is true of some multicast groups.
    return address.is_global and not address.is_multicast


def resolve_host(host: str, port: int, *, allow_private: bool) -> str:
    """Return one address of a host, as text.

    Raises:
        httpcore2.ConnectError: the host has no address, or one that is not public.
    """
    try:
        # Through the resolver even for a literal address: it knows more spellings than `ipaddress` (0x7f.1, 127.1).
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(answer[4][0]) for answer in answers]
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"{host!r} has no address") from error
    # One private address refuses the whole host: no honest receiver mixes them.
    refused = [address for address in addresses if not allow_private and not is_public(address)]
    if refused:
        raise httpcore2.ConnectError(f"{host!r} has the address {refused[0]}, which is not public")
    return str(addresses[0])


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects only to addresses that `resolve_host` allows, and ends each connection `timeout_s` after its start."""

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
        # By address: connecting by name would resolve the name again.
        address = resolve_host(host, port, allow_private=self._allow_private)
        return _DeadlineStream(self._plain.connect_tcp(address, port, self._timeout_s, local_address), deadline)


class _DeadlineStream(httpcore2.NetworkStream):
    """A stream with one deadline for all its reads and writes."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        # httpcore2's own timeouts restart with every read, so a receiver that drips bytes could block a sender forever.
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._remaining_s(httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._remaining_s(httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        # The certificate is checked for the name, although the connection goes to the address.
        remaining_s = self._remaining_s(httpcore2.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, remaining_s), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _remaining_s(self, timeout_error: type[Exception]) -> float:
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise timeout_error("the receiver took too long")
        return remaining_s
