"""Identify the caller of a request before anything of its body is read, and refuse an unknown one.

Three kinds of callers come in: one with an API key, one whom a trusted proxy names by `X-Tenant`, and anybody while no
key exists and the API listens on loopback (or `FLUX2_API_INSECURE` says so).
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.doors.caller import Caller
from api.doors.keyring import Keyring
from api.doors.origin_guard import OriginGuard
from api.doors.roles import CALLER
from api.errors import problem_of
from shared.errors import Flux2Error, InvalidRequest, KeyInvalid, KeyMissing, LedgerUnavailable
from shared.keys.record import DEFAULT_TENANT, ROLES, TENANT
from shared.keys.secret import KEY_PREFIX
from shared.network.callers import is_loopback
from shared.settings import ApiSettings

# Answered without any other check: a store that hangs must not make a process look dead.
_LIVENESS: Final = "/health"
# Answered to callers without a key too.
_OPEN: Final = frozenset({"/", "/ready", "/docs", "/redoc", "/openapi.json"})
_PAGE_FILES: Final = ("/docs/", "/console/")
#: The address of the other end of the connection, before a proxy's headers replace it.
PEER: Final = "flux2.peer"


class Peer:
    """Remembers the other end of a connection; it comes before the middleware that reads `X-Forwarded-For`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PEER] = _address(scope)
        await self._app(scope, receive, send)


class Door:
    """Names the caller of each request in its scope, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, keyring: Keyring) -> None:
        self._app = app
        self._settings = settings
        self._keyring = keyring
        self._guard = OriginGuard(settings)
        self._may_be_keyless = settings.insecure or is_loopback(settings.host)
        self._open = _OPEN | ({"/metrics"} if settings.metrics == "open" else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != _LIVENESS:
            try:
                scope[CALLER] = await self._admit(scope)
            except Flux2Error as error:
                await problem_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Caller | None:
        """Return the caller; None on a path that is open to everybody."""
        headers = Headers(scope=scope)
        is_open = scope["path"] in self._open or scope["path"].startswith(_PAGE_FILES)
        if self._guard.has_host_list:
            self._guard.check_host(headers)
        if self._may_be_keyless and not await self._has_keys(is_open=is_open):
            self._guard.check_host(headers)
            self._guard.check_sender(scope["method"], scope["path"], headers)
            return self._proxied(scope, headers) or _anonymous(headers, is_known=self._may_name_tenant(scope))
        caller = self._proxied(scope, headers)
        scheme, _, text = headers.get("authorization", "").partition(" ")
        # What is no key of this API may be what the caller showed to the proxy, which passes it on.
        if scheme and (caller is None or text.strip().startswith(KEY_PREFIX)):
            if scheme.lower() != "bearer":
                # Without what was sent: it may be a key that lacks the scheme.
                raise KeyInvalid("the header Authorization has another scheme; send Authorization: Bearer flux2_...")
            return await self._keyring.identify(text.strip(), address=_address(scope))
        if caller is None and not is_open:
            raise KeyMissing
        return caller

    async def _has_keys(self, *, is_open: bool) -> bool:
        try:
            return await self._keyring.has_keys()
        except LedgerUnavailable:
            # These paths say what is wrong with Redis, or need none.
            if is_open:
                return False
            raise

    def _proxied(self, scope: Scope, headers: Headers) -> Caller | None:
        """Return the caller whom a trusted proxy names."""
        tenants = headers.getlist("x-tenant")
        if not tenants or not self._settings.trusted_proxies.contains(scope[PEER]):
            return None
        if len(tenants) > 1:
            raise InvalidRequest(
                "the call has several headers X-Tenant; configure the proxy to replace the one that a caller sends"
            )
        [tenant] = tenants
        if not TENANT.fullmatch(tenant):
            raise InvalidRequest(
                f"X-Tenant {tenant[:64]!r} is no tenant; use up to 64 letters, digits, '.', '_' and '-', and begin "
                "with a letter or a digit"
            )
        return Caller(tenant=tenant, roles=frozenset({"submit", "read"}))

    def _may_name_tenant(self, scope: Scope) -> bool:
        return is_loopback(scope[PEER])


def _anonymous(headers: Headers, *, is_known: bool) -> Caller:
    # An unsound name is refused by the endpoint, as a field of the request.
    tenant = headers.get("x-tenant", DEFAULT_TENANT) if is_known else DEFAULT_TENANT
    return Caller(tenant=tenant, roles=frozenset(ROLES), is_anonymous=True)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
