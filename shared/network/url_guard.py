"""Decide whether a URL may be fetched, before any name is resolved: scheme, host, port and spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from shared.errors import AdapterRefused
from shared.network.hosts import HostPatterns, PrivateHosts

#: The setting that allows hosts for most files.
HOSTS_SETTING: Final = "FLUX2_SOURCES_HTTPS_HOSTS"

_MAX_CHARS: Final = 8192
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PORTS: Final = frozenset(_DEFAULT_PORTS.values())
# What a URL may hold by RFC 3986, without the `#` of a fragment. Two parsers may read anything else differently.
_URL: Final = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
# Letters, digits and hyphens between dots, or an IPv6 address: no percent sign, no zone, and no dot at the end.
_HOST: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True)
class CheckedUrl:
    """A URL that may be fetched, in parts, so that no second parser reads it.

    Attributes:
        host: in lower case, without the brackets of an IPv6 address.
        target: path and query; it may hold a signature: keep it out of messages and logs.
        may_be_private: whether an operator listed the host and its port, which may have private addresses.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    may_be_private: bool

    @property
    def place(self) -> str:
        """The host as messages name it, with its port if that is unusual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class UrlGuard:
    """Checks URLs against the hosts that an operator allows; a refusal names `hosts_setting`."""

    allowed: HostPatterns
    private: PrivateHosts
    hosts_setting: str = HOSTS_SETTING

    def check(self, url: str, *, came_from: str = "") -> CheckedUrl:
        """Return the parts of a URL that may be fetched.

        Args:
            came_from: the host that redirected to this URL, for the message.

        Raises:
            AdapterRefused: the URL may not be fetched; the message holds no path, query or password.
        """
        subject = f"the address to which {came_from} redirects" if came_from else "the link"
        if len(url) > _MAX_CHARS:
            raise _refused(f"{subject} has {len(url)} characters; the limit is {_MAX_CHARS}")
        if "#" in url:
            raise _refused(f"{subject} has a fragment; remove the # and what follows it")
        if not _URL.fullmatch(url):
            raise _refused(f"{subject} holds a character that a URL must escape; copy the browser's address line")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise _refused(f"{subject} is not a URL; write https://HOST/FILE") from None
        if "@" in parts.netloc:
            raise _refused(f"{subject} holds a user name or password; the operator sets FLUX2_SOURCES_HTTPS_HEADERS")
        if parts.scheme not in _DEFAULT_PORTS:
            raise _refused(f"{subject} has the scheme {parts.scheme[:20]!r}; only https:// is fetched")
        if not _HOST.fullmatch(host):
            raise _refused(f"{subject} has no host name of letters, digits, hyphens and dots; write https://HOST/FILE")
        port = _DEFAULT_PORTS[parts.scheme] if port is None else port
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        found = CheckedUrl(parts.scheme, host, port, target, self.private.contains(host, port))
        if not found.may_be_private:
            self._check_public(found, subject)
        return found

    def _check_public(self, url: CheckedUrl, subject: str) -> None:
        if url.scheme != "https":
            raise _refused(f"{subject} is not encrypted; use https://")
        if not self.allowed.matches(url.host):
            raise _refused(
                f"{subject} is on {url.host[:255]}, from which this service takes no files; the operator allows hosts "
                f"with {self.hosts_setting}"
            )
        if url.port not in _PORTS:
            raise _refused(f"{subject} has the port {url.port}; only 443 and 80 are connected to")


def _refused(message: str) -> AdapterRefused:
    return AdapterRefused(message, field="path")
