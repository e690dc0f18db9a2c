"""Check a webhook's URL when a job is submitted, before anything is sent to it."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from shared.errors import InvalidRequest
from shared.network.address_ranges import is_public
from shared.settings import WebhookSettings


def check_webhook_url(url: str, settings: WebhookSettings) -> None:
    """Refuse a URL to which no message can be sent.

    Raises:
        InvalidRequest: the message states the fault of the URL.
    """
    if settings.secret is None:
        raise _invalid("webhooks are disabled on this server; set FLUX2_WEBHOOK_SECRET to enable them")
    try:
        parts = urlsplit(url)
        # Reading the port raises for one that is no number, or out of range.
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise _invalid(f"{url!r} is not a URL: {error}") from error
    schemes = ("https", "http") if settings.allow_private else ("https",)
    if parts.scheme not in schemes:
        raise _invalid(f"{url!r} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    # Parts that are not sent with a request, and characters that two URL parsers may read differently.
    if not host or parts.username is not None or parts.fragment or not url.isascii() or set(url) & set(" \r\n\t"):
        raise _invalid(f"{url!r} must have a host, and no user, fragment, space or character beyond ASCII")
    # Names are not resolved here: their addresses may change, and are checked each time a message is sent.
    try:
        address = ip_address(host)
    except ValueError:
        return
    if not settings.allow_private and not is_public(address):
        raise _invalid(f"{host} is not a public address")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="INVALID_WEBHOOK_URL", field="webhook_url")
