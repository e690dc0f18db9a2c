"""Where calls of the API come from, as settings name it: proxies in front of it, and web pages."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Networks:
    """Addresses and networks of hosts."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: Networks | str) -> Networks:
        """Parse addresses and networks that commas separate; parsed ones are returned as they are.

        Raises:
            ValueError: a part is neither.
        """
        if isinstance(text, Networks):
            return text
        return cls(tuple(_parse_network(part.strip()) for part in text.split(",") if part.strip()))

    def contains(self, host: str) -> bool:
        """Return whether an address is one of them; False for a text that is no address."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    def __str__(self) -> str:
        return ",".join(str(network) for network in self.networks)


@dataclass(frozen=True)
class Origins:
    """Origins of web pages: scheme, host and port."""

    origins: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: Origins | str) -> Origins:
        """Parse origins that commas separate; parsed ones are returned as they are.

        Raises:
            ValueError: a part is no origin.
        """
        if isinstance(text, Origins):
            return text
        return cls(tuple(_parse_origin(part.strip().lower()) for part in text.split(",") if part.strip()))

    def __str__(self) -> str:
        return ",".join(self.origins)


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on this address is reached from its own host alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_network(part: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(part)
    except ValueError as error:
        raise ValueError(f"{error}; write addresses such as 10.0.0.5 or networks such as 10.0.0.0/24") from error


def _parse_origin(part: str) -> str:
    parts = urlsplit(part)
    if parts.scheme not in ("http", "https") or part != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError(
            f"{part!r} is no origin; write a scheme and a host, such as https://console.example.com, without a path"
        )
    return part
