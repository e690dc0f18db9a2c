"""Log and count each call of the API with its answer, and name its request in all lines that are written for it."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.doors.caller import Caller
from api.doors.roles import CALLER
from api.metrics.answers import count_answer
from shared.log_context import leave_request, request_context

logger = logging.getLogger("flux2.api.access")

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUESTS = "/v1/requests/"


class AccessLog:
    """Writes a line for each call: at level INFO if it changes something or fails by a fault here, else at DEBUG."""

    # Polls are most of all calls; a line for each would cost more than their answers say.

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Stays 0 if the server cancels the call before its answer.
        status = 0
        began = time.perf_counter()
        streams_from: float | None = None

        async def send_and_remember(message: Message) -> None:
            nonlocal status, streams_from
            if message["type"] == "http.response.start":
                status = message["status"]
                streams_from = time.perf_counter() if _is_stream(message) else None
            await send(message)

        # The server begins the next call of a connection where one ends, if it was sent before the answer.
        leave_request()
        with request_context(_request_id(scope["path"])):
            try:
                await self._app(scope, receive, send_and_remember)
            finally:
                # A stream of events lasts for as long as somebody watches, which says nothing about the API.
                seconds = (streams_from or time.perf_counter()) - began
                count_answer(scope, status, seconds=seconds)
                _log(scope, status, seconds=seconds)


def _request_id(path: str) -> str:
    """Return the id of a request in a path; empty if it has none."""
    return path.removeprefix(_REQUESTS).partition("/")[0] if path.startswith(_REQUESTS) else ""


def _is_stream(start: Message) -> bool:
    return Headers(raw=start.get("headers", [])).get("content-type", "").startswith("text/event-stream")


def _log(scope: Scope, status: int, *, seconds: float) -> None:
    is_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    level = logging.DEBUG if scope["method"] in _READS and not is_fault else logging.INFO
    if not logger.isEnabledFor(level):
        return
    caller: Caller | None = scope.get(CALLER)
    who = {} if caller is None else {"tenant": caller.tenant, **({"key": caller.key_id} if caller.key_id else {})}
    # Without the query, which may hold what a log should not: a link with a token, for example.
    what = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
    logger.log(level, "call answered", extra={**what, **who})
