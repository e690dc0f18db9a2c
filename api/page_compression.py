"""Compress the files of the pages: the console's first view is a third as large.

Answers with data are left alone: polls are small, and must stay cheap.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_PAGES: Final = frozenset({"/", "/openapi.json"})
_FILES: Final = ("/console/", "/docs/")
_SMALLEST_BYTES: Final = 1000
# A higher level takes twice the time for 1 % less.
_LEVEL: Final = 6


class PageCompression:
    """Compresses the answers to paths of pages, for callers that accept it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(app, minimum_size=_SMALLEST_BYTES, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and (scope["path"] in _PAGES or scope["path"].startswith(_FILES))
        await (self._compressed if is_page else self._app)(scope, receive, send)
