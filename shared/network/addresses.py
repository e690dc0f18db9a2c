"""Connect to callers' URLs without reaching the private network (protection against SSRF).

A host name is resolved once, all its addresses must be public, and the connection goes to one of these addresses.
Resolving the name differently a moment later (DNS rebinding) has no effect.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore2

from shared.network.address_ranges import Address, is_public

# A name may have hundreds of addresses: trying all of them would make this service a scanner of ports.
_MAX_TRIED: Final = 8
# Lookups under way in this process, with those that nobody waits for any more.
_MAX_LOOKUPS: Final = 128
_lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class _NotPublic(httpcore2.ConnectError):
    """The host has an address that is not public."""


def is_refusal(error: Exception) -> bool:
    """Return whether a connection failed because this module refused it: nothing was sent, and nothing will be."""
    return isinstance(error, _NotPublic)


def resolve_host(host: str, port: int, *, allow_private: bool, timeout_s: float | None = None) -> Sequence[str]:
    """Return the addresses of a host as text, in the resolver's order.

    Raises:
        httpcore2.ConnectError: the host has no address, or one that is not public; `is_refusal` says which.
        httpcore2.ConnectTimeout: the resolver took too long.
    """
    addresses = _look_up(host, port, timeout_s)
    # One private address refuses the whole host: no honest host mixes them.
    refused = [address for address in addresses if not allow_private and not is_public(address)]
    if refused:
        raise _NotPublic(f"{host!r} has the address {refused[0]}, which is not public")
    return [str(address) for address in addresses]


def host_header(url: str) -> str:
    """Return the value of the Host header for a URL; httpcore2 leaves out the brackets of an IPv6 address."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return host if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def _look_up(host: str, port: int, timeout_s: float | None) -> Sequence[Address]:
    """Resolve a host; each address occurs once."""
    # In a thread, because `getaddrinfo` knows no timeout: dead name servers hold it for 10 to 40 s.
    answers: queue.SimpleQueue[Sequence[Address] | Exception] = queue.SimpleQueue()
    began_s = time.monotonic()
    if not _lookups.acquire(timeout=timeout_s):
        raise httpcore2.ConnectTimeout(f"{host!r} could not be resolved: {_MAX_LOOKUPS} lookups are under way")

    def resolve() -> None:
        try:
            # Also for a literal address: the resolver knows more spellings than `ipaddress` (0x7f.1, 127.1).
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([*dict.fromkeys(ipaddress.ip_address(answer[4][0]) for answer in found)])
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must get an answer
            answers.put(error)
        finally:
            _lookups.release()

    try:
        threading.Thread(target=resolve, name="flux2-resolve", daemon=True).start()
    except RuntimeError as error:
        _lookups.release()
        raise httpcore2.ConnectError(f"{host!r} could not be resolved: {error}") from error
    try:
        # The wait for a place counts too.
        left_s = None if timeout_s is None else max(0.0, began_s + timeout_s - time.monotonic())
        answer = answers.get(timeout=left_s)
    except queue.Empty:
        raise httpcore2.ConnectTimeout(f"{host!r} was not resolved in {timeout_s:g} s") from None
    if isinstance(answer, OSError | ValueError):
        raise httpcore2.ConnectError(f"{host!r} has no address") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


@dataclass
class _Deadline:
    """A time on the monotonic clock."""

    at: float


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects only to addresses that `resolve_host` allows, and ends each connection `timeout_s` after its start.

    A request's own timeouts shorten single steps.
    """

    def __init__(self, *, allow_private: bool, timeout_s: float) -> None:
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._deadline = _Deadline(0.0)
        self._plain: httpcore2.NetworkBackend = httpcore2.SyncBackend()

    def extend(self, timeout_s: float) -> None:
        """Let the last connection end `timeout_s` from now instead."""
        self._deadline.at = time.monotonic() + timeout_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        deadline = self._deadline = _Deadline(time.monotonic() + self._timeout_s)
        connect_s = self._timeout_s if timeout is None else min(timeout, self._timeout_s)
        connected_by = time.monotonic() + connect_s
        # By address: connecting by name would resolve the name again.
        addresses = resolve_host(host, port, allow_private=self._allow_private, timeout_s=connect_s)[:_MAX_TRIED]
        failure: Exception = httpcore2.ConnectTimeout(f"{host!r} took too long to connect")
        for position, address in enumerate(addresses):
            # Each address gets its share of what is left, so that one without an answer leaves time for the next.
            share_s = (connected_by - time.monotonic()) / (len(addresses) - position)
            if share_s <= 0:
                break
            try:
                stream = self._plain.connect_tcp(address, port, share_s, local_address, socket_options)
                return _DeadlineStream(stream, deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _DeadlineStream(httpcore2.NetworkStream):
    """A stream with one deadline for all its reads and writes."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        # httpcore2's own timeouts restart with every read, so a host that drips bytes could block this side forever.
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._remaining_s(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._remaining_s(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        # The certificate is checked for the name, although the connection goes to the address.
        remaining_s = self._remaining_s(timeout, httpcore2.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, remaining_s), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _remaining_s(self, timeout: float | None, timeout_error: type[Exception]) -> float:
        remaining_s = self._deadline.at - time.monotonic()
        if remaining_s <= 0:
            raise timeout_error("the host took too long to answer")
        return remaining_s if timeout is None else min(timeout, remaining_s)
