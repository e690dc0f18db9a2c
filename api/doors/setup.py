"""Put the doors around the application, in the order in which a request meets them."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.doors.access_log import AccessLog
from api.doors.defects import Defects
from api.doors.door import Door, Peer
from api.doors.failures import Failures
from api.doors.headers import SecureHeaders
from api.doors.keyring import Keyring
from api.doors.traced_submits import TracedSubmits
from api.openai.error_shape import OpenAIErrors
from api.schemas.problems import Problem
from shared.ledger import Ledger
from shared.local.ports import LOOPBACK
from shared.settings import Settings
from shared.tracing import Tracer

#: What each endpoint under /v1 may answer because of its caller.
DOOR_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The API key is missing, wrong, revoked or expired."},
    403: {"model": Problem, "description": "The API key does not allow this call, or another site's page sent it."},
}

_METHODS = ("GET", "POST", "PUT", "DELETE")
_SENT = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Prefer",
    "X-Content-SHA256",
    "Content-Digest",
    "Last-Event-ID",
)
_SHOWN = ("Location", "Content-Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied")


def add_doors(app: FastAPI, settings: Settings, ledger: Ledger, *, tracer: Tracer) -> None:
    """Add the middleware that every request passes before its body is read."""
    # Starlette calls the last one first.
    keyring = Keyring(ledger.api_keys, Failures(ledger))
    app.add_middleware(Door, settings=settings.api, keyring=keyring)
    app.add_middleware(Defects)
    app.add_middleware(OpenAIErrors)
    if origins := settings.api.cors_origins.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=_METHODS, allow_headers=_SENT, expose_headers=_SHOWN
        )
    app.add_middleware(SecureHeaders)
    proxies = [str(network) for network in settings.api.trusted_proxies.networks]
    # As uvicorn itself does: a proxy that only ends TLS names addresses, but no tenants.
    forwarders = proxies or os.environ.get("FORWARDED_ALLOW_IPS", LOOPBACK)
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=forwarders)
    app.add_middleware(Peer)
    app.add_middleware(AccessLog)
    if tracer.is_on:
        app.add_middleware(TracedSubmits, tracer=tracer)
