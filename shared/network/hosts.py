"""The hosts from which files may come, as settings name them: public ones, an operator's own, and their tokens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

# Letters, digits and hyphens, as in DNS. Others must be written as `xn--...`: two readers may spell them differently.
_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# The client itself sets these, or they would change which bytes an answer has.
_OWN_HEADERS: Final = frozenset(
    [
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "if-match",
        "if-none-match",
        "if-range",
        "range",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    ]
)
_HEADERS_FORM: Final = 'a JSON object such as {"civitai.com": "Authorization: Bearer TOKEN"}'
_HTTPS_PORT: Final = 443


_ANY: Final = "*"


@dataclass(frozen=True)
class HostPatterns:
    """Names of hosts; `*.example.com` stands for every name that ends with `.example.com`, but not for that itself."""

    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, text: HostPatterns | str) -> HostPatterns:
        """Parse names that commas separate; parsed ones are returned as they are.

        Raises:
            ValueError: a part is not a host name.
        """
        if isinstance(text, HostPatterns):
            return text
        patterns = _split(text)
        for pattern in patterns:
            if not _NAME.fullmatch(pattern.removeprefix("*.")) or (pattern.startswith("*.") and "." not in pattern[2:]):
                raise ValueError(
                    f"{pattern!r} is not a host; write names such as civitai.com or *.hf.co, without a scheme, port or "
                    "path, and put commas between them"
                )
        return cls(patterns)

    @classmethod
    def parse_or_any(cls, text: HostPatterns | str) -> HostPatterns:
        """Do the same as `parse`; a single `*` stands for every name.

        Raises:
            ValueError: a part is not a host name.
        """
        is_any = isinstance(text, str) and _split(text) == (_ANY,)
        return cls((_ANY,)) if is_any else cls.parse(text)

    def matches(self, host: str) -> bool:
        """Return whether a host, in lower case, has one of the names."""
        return _ANY in self.patterns or any(
            host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in self.patterns
        )

    def __str__(self) -> str:
        return ",".join(self.patterns)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class PrivateHosts:
    """Hosts with their ports that an operator runs: they may have private addresses and may serve plain http."""

    places: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, text: PrivateHosts | str) -> PrivateHosts:
        """Parse `host:port` parts that commas separate; parsed ones are returned as they are.

        Raises:
            ValueError: a part is not a host and a port.
        """
        if isinstance(text, PrivateHosts):
            return text
        return cls(frozenset(_parse_place(part.strip()) for part in text.split(",") if part.strip()))

    def adding(self, host: str, port: int) -> PrivateHosts:
        """Return these hosts and one more."""
        return PrivateHosts(self.places | {(host.lower(), port)})

    def contains(self, host: str, port: int) -> bool:
        return (host, port) in self.places

    def __str__(self) -> str:
        return ",".join(sorted(_write_place(host, port) for host, port in self.places))


@dataclass(frozen=True, repr=False)
class HostHeaders:
    """One header for each of some hosts, usually its token; as text, it shows none of them."""

    # By host and port: a token for a host must not go to another service on another of its ports.
    _headers: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: HostHeaders | str) -> HostHeaders:
        """Parse a JSON object from hosts, with a port if it is not 443, to headers.

        Raises:
            ValueError: the text has another form; the message holds no part of a header's value.
        """
        if isinstance(text, HostHeaders):
            return text
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"not {_HEADERS_FORM}")  # noqa: TRY004 - pydantic reports this kind alone
        headers = cls()
        for host, header in found.items():
            place = _parse_place(host if _PORT.search(host) else f"{host}:{_HTTPS_PORT}")
            name, colon, value = header.partition(":") if isinstance(header, str) else ("", "", "")
            if not colon:
                raise ValueError(f"the header of {host!r} is not a text `Name: value`; write {_HEADERS_FORM}")
            headers = headers.adding(*place, name.strip(), value.strip())
        return headers

    def adding(self, host: str, port: int, name: str, value: str) -> HostHeaders:
        """Return these headers and one more, which replaces another of the same host and port.

        Raises:
            ValueError: no request can hold the header; the message holds no part of its value.
        """
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"the header of {host!r} cannot be {name!r}; choose one such as Authorization")
        if not value or not value.isascii() or not value.isprintable():
            raise ValueError(
                f"the header {name} of {host!r} is empty or holds a character that no header can; write printable ASCII"
            )
        return HostHeaders({**self._headers, (host.lower(), port): (name, value)})

    def get(self, host: str, port: int) -> tuple[str, str] | None:
        """Return the header for one host and port as (name, value), in clear text."""
        return self._headers.get((host, port))

    def __str__(self) -> str:
        return ",".join(f"{_write_place(*place)}=**********" for place in sorted(self._headers))

    def __repr__(self) -> str:
        return f"HostHeaders({str(self)!r})"


_PORT: Final = re.compile(r":\d+$")


def _parse_place(text: str) -> tuple[str, int]:
    host, _, port = text.lower().rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_host = _NAME.fullmatch(host) or re.fullmatch(r"[0-9a-f:.]*:[0-9a-f:.]*", host)
    if not is_host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is not a host and a port; write them as in mirror.lan:8080")
    return host, int(port)


def _write_place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
