"""Parse `FLUX2_REDIS_URL` once, for both clients of Redis: the ledger's redis-py and Celery's kombu.

redis-py's parser decides what a URL means. kombu reads the same text differently: it takes the database from the path
alone, fails on redis-py's options, knows Unix sockets by another scheme, and verifies no certificate by default. So it
gets a URL that holds an address and nothing else, and its TLS options as redis-py's arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from shared.redis_tls import TLS_OPTIONS, complete_tls_options

_SCHEMES = ("redis://", "rediss://", "unix://")
# Says nothing of the URL itself: whatever is wrong with it, a part of the password may have become a host or a path.
_MALFORMED = (
    "not a URL of the form redis://[[user]:password@]host[:port][/database]; write special characters of the password "
    "as in URLs, for example / as %2F, @ as %40 and # as %23"
)
_OPTIONS = frozenset({"db", "username", "password"})
_TIMEOUT = "set FLUX2_REDIS_TIMEOUT_S instead"
_REMEDIES = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, "timeout": _TIMEOUT}


@dataclass(frozen=True, repr=False)
class RedisUrl:
    """The address of Redis, the login, and how TLS is verified; as text, it shows no password.

    Attributes:
        text: the URL as it was set, with its password: keep it out of messages, logs and command lines.
    """

    text: str
    _options: Mapping[str, Any] = field(compare=False)

    @classmethod
    def parse(cls, url: RedisUrl | str) -> RedisUrl:
        """Parse a URL; a parsed one is returned as it is.

        Raises:
            ValueError: the two clients would not understand the URL in the same way. The message names the option and
                the remedy, and holds no part of a password.
        """
        if isinstance(url, RedisUrl):
            return url
        if not url.startswith(_SCHEMES):
            raise ValueError(
                f"Redis URL must specify one of the schemes {', '.join(_SCHEMES)}; Sentinel is not supported"
            )
        _check_form(url)
        return cls(url, _complete(_read_options(url)))

    @property
    def is_unix_socket(self) -> bool:
        return "path" in self._options

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of redis-py's `ConnectionPool`."""
        return dict(self._options)

    def celery_settings(self) -> dict[str, Any]:
        """Return Celery's `broker_url`, which holds the password, and `broker_use_ssl`."""
        tls = {name: value for name, value in self._options.items() if name in TLS_OPTIONS}
        return {"broker_url": self._broker_url(), "broker_use_ssl": tls or None}

    def _broker_url(self) -> str:
        user, password = (quote(self._options.get(name, ""), safe="") for name in ("username", "password"))
        login = f"{user}:{password}@" if user or password else ""
        if self.is_unix_socket:
            return f"redis+socket://{login}{quote(self._options['path'])}?virtual_host={self._options['db']}"
        return f"{self._scheme}://{login}{self._address}"

    @property
    def _scheme(self) -> str:
        return "rediss" if self._options.get("connection_class") is SSLConnection else "redis"

    @property
    def _address(self) -> str:
        host = self._options["host"]
        quoted = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
        return f"{quoted}:{self._options['port']}/{self._options['db']}"

    def __str__(self) -> str:
        login = "***@" if {"username", "password"} & set(self._options) else ""
        if self.is_unix_socket:
            return f"unix://{login}{self._options['path']}?db={self._options['db']}"
        return f"{self._scheme}://{login}{self._address}"

    def __repr__(self) -> str:
        return f"RedisUrl({str(self)!r})"


def _check_form(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Not chained: Python's message repeats what it took for a port or a host.
        raise ValueError(_MALFORMED) from None
    address = parts.netloc.rpartition("@")[2]
    if "#" in url or (parts.scheme != "unix" and "@" in parts.path + parts.query):
        raise ValueError(_MALFORMED)
    if parts.scheme == "unix" and (address or not parts.path):
        raise ValueError("a Unix socket has no host; write three slashes: unix:///run/redis.sock?db=0")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*/?", parts.path):
        raise ValueError("the path is not the number of a database; end the address with, for example, /0")
    _check_options(parts)


def _check_options(parts: SplitResult) -> None:
    allowed = _OPTIONS | TLS_OPTIONS if parts.scheme == "rediss" else _OPTIONS
    seen = set()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in TLS_OPTIONS - allowed:
            raise ValueError(f"the option {name} needs a URL that begins with rediss://")
        if name not in allowed:
            remedy = _REMEDIES.get(name, f"remove it; possible options are {', '.join(sorted(allowed))}")
            raise ValueError(f"{_shown(name, parts)} does not work for both the ledger and Celery; {remedy}")
        if not value or name in seen:
            raise ValueError(f"the option {name} needs one value; write {name}=... once, or remove it")
        seen.add(name)


def _read_options(url: str) -> Mapping[str, Any]:
    try:
        return parse_url(url)  # type: ignore[no-untyped-call, no-any-return]
    except ValueError as error:
        # redis-py's message names the option, and not its value.
        raise ValueError(
            f"{str(error).removesuffix('.')}; correct or remove the option, see docs/operations.md"
        ) from error


def _shown(name: str, parts: SplitResult) -> str:
    """Write the name of an unknown option, unless it may be the end of a password that holds an unescaped `&`."""
    if "password=" in parts.query:
        return "an option after the ? (write & in a password as %26)"
    return f"the option {name}"


def _complete(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of redis-py, so that no default of kombu applies."""
    options = {"db": 0, **parsed}
    if options["db"] < 0:
        raise ValueError(f"db={options['db']} is not the number of a database; write 0 or more")
    if options.get("connection_class") is UnixDomainSocketConnection:
        return options
    options = {"host": "localhost", "port": 6379, **options}
    if options.get("connection_class") is SSLConnection:
        options |= complete_tls_options({name: value for name, value in options.items() if name in TLS_OPTIONS})
    return options
