"""Headers that keep browsers from doing more with an answer than its receiver asked for."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Answers are data. A browser that shows one runs nothing in it and loads nothing for it.
_DATA_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# The pages of the reference come with their own files. Swagger UI and ReDoc set styles, and ReDoc searches in a worker.
_PAGE_POLICY: Final = (
    b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGES: Final = frozenset({"/docs", "/redoc"})
_PAGE_FILES: Final = "/docs/"


class SecureHeaders:
    """Adds headers to each answer; those of the answer itself win."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_page = scope["path"] in _PAGES or scope["path"].startswith(_PAGE_FILES)
        added = [*_ALWAYS, (b"content-security-policy", _PAGE_POLICY if is_page else _DATA_POLICY)]
        if not is_page:
            # Results hold signed URLs, which a shared cache must not give to another caller.
            added.append((b"cache-control", b"no-store"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in added if each[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_headers)
