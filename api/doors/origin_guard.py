"""Refuse what a web page of another site may have sent to an API that needs no key.

A browser on this host reaches an API on loopback, and sends requests for any page that it shows. Without a key, nothing
else distinguishes them from those of a program:

* `Host`: a page whose name its owner points to 127.0.0.1 (DNS rebinding) is of the same site for the browser, but the
  request still names that host.
* `Sec-Fetch-Site` and `Origin`: browsers state the page that sends a request, and no page can change them.
* Content types: a form can send three of them without any of these headers in old browsers.

With API keys none of this is needed: a page has no key, and no browser adds one by itself.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from api.json_body import type_refused
from shared.errors import SenderRefused
from shared.settings import ApiSettings

# What a form, or a script without the other site's consent, can declare.
_FORM_TYPES: Final = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
# These endpoints check the type of their body, and say what it must be. OpenAI's edits are forms: for them, only the
# other checks tell pages of other sites from programs.
_CHECKED_LATER: Final = frozenset({"/v1/inference", "/v1/replays", "/v1/uploads", "/v1/images/edits"})
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
# `none` is a person who typed the address.
_OWN_SITES: Final = ("same-origin", "none")
# Characters of a caller's header that a message repeats.
_SHOWN_CHARS: Final = 100


class OriginGuard:
    """Checks the headers of requests; each check raises `SenderRefused` or `ContentTypeRefused`."""

    def __init__(self, settings: ApiSettings) -> None:
        base_host = urlsplit(settings.base_url or "").hostname
        # Nobody outside the network of this host can point its own name to it.
        own = socket.gethostname().lower()
        short = own.partition(".")[0]
        self._names = {"localhost", own, short, f"{short}.local", settings.host.lower()}
        if base_host:
            self._names.add(base_host)
        self._allowed = settings.allowed_hosts
        self._origins = frozenset(settings.cors_origins.origins)

    @property
    def has_host_list(self) -> bool:
        """Whether the operator lists the names of this API: calls to others are then refused, with a key too."""
        return bool(self._allowed.patterns)

    def check_host(self, headers: Headers) -> None:
        """Refuse a request to a name that is not this API's."""
        hosts = headers.getlist("host")
        # Programs of HTTP/1.0 send none; every browser sends one.
        if len(hosts) > 1 or (hosts and not self._is_own(hosts[0])):
            raise SenderRefused(
                f"this API is not called {hosts[0][:_SHOWN_CHARS]!r}; use the address of the API, or add the name to "
                "FLUX2_API_ALLOWED_HOSTS"
            )

    def check_sender(self, method: str, path: str, headers: Headers) -> None:
        """Refuse a request that a web page of another site may have sent."""
        self._check_site(method, headers)
        self._check_origin(headers)
        if path in _CHECKED_LATER:
            return
        content_type = headers.get("content-type", "")
        # A form has no other method that changes something.
        if method == "POST" and content_type.partition(";")[0].strip().lower() in _FORM_TYPES:
            raise type_refused(content_type)

    def _check_site(self, method: str, headers: Headers) -> None:
        site = headers.get("sec-fetch-site", "none").lower()
        if site in _OWN_SITES or self._is_listed(headers.get("origin")):
            return
        # A link that a person follows shows the answer to that person alone.
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not (is_link and method in _SAFE_METHODS):
            raise _foreign_page(headers.get("origin"))

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or self._is_listed(origin):
            return
        # The browser has compared them already; a proxy may have replaced the host since.
        if headers.get("sec-fetch-site", "").lower() == "same-origin":
            return
        # The scheme is not compared: behind a proxy it is the proxy's. The host is one of this API's names.
        try:
            own = urlsplit(origin).netloc.lower()
        except ValueError:
            own = ""
        if not own or own != headers.get("host", "").lower():
            raise _foreign_page(origin)

    def _is_listed(self, origin: str | None) -> bool:
        return origin is not None and origin.lower() in self._origins

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        # An address is no name that somebody could point to this host.
        return name in self._names or self._allowed.matches(name) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _foreign_page(origin: str | None) -> SenderRefused:
    page = f" at {origin[:_SHOWN_CHARS]!r}" if origin else ""
    return SenderRefused(
        f"a web page of another site{page} sent this call, and without API keys nobody could know whether its reader "
        "meant to; list the page in FLUX2_API_CORS_ORIGINS, or make keys with `flux2 keys create`"
    )
