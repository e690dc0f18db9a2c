"""Notice what a page of the console must never do: fail, or call another host."""

import re
from urllib.parse import urlsplit


class PageWatch:
    """Faults of the pages of a test: errors in their consoles, violations of their policies, requests that failed.

    Attributes:
        requests: every request that the pages sent.
    """

    def __init__(self):
        self.requests = []
        self._faults = []
        self._allowed = []

    def watch(self, context, *, hosts):
        """Watch all pages of a browser context, which may call the addresses `hosts` alone."""
        # The browser writes violations of a content security policy, and answers from 400 on, as errors too.
        context.on("console", lambda message: message.type == "error" and self._add(_describe(message)))
        context.on("weberror", lambda error: self._add(f"uncaught: {error.error}"))
        context.on("requestfailed", self._on_failure)
        context.on("request", lambda request: self._on_request(request, hosts))

    def allow(self, pattern):
        """Expect faults that match a pattern: what a test does makes them."""
        self._allowed.append(re.compile(pattern))

    @property
    def faults(self):
        return [fault for fault in self._faults if not any(pattern.search(fault) for pattern in self._allowed)]

    def _add(self, fault):
        self._faults.append(fault)

    def _on_failure(self, request):
        # The page itself aborts calls whose answer it no longer needs.
        if request.failure != "net::ERR_ABORTED":
            self._add(f"failed: {request.method} {request.url}: {request.failure}")

    def _on_request(self, request, hosts):
        self.requests.append(request)
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.netloc not in hosts:
            self._add(f"foreign: {request.method} {request.url}")


def _describe(message):
    return f"console: {message.text} ({message.location['url']})"
