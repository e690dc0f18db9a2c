"""Trace the calls that submit jobs; the way of their images goes on in the workers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.openai.error_shape import PATHS as OPENAI_PATHS
from shared.log_context import request_context
from shared.tracing import Tracer

# Polls and listings are most of all calls, and say nothing about the way of an image.
_TRACED: Final = OPENAI_PATHS | {"/v1/inference", "/v1/replays"}


class TracedSubmits:
    """Begins the trace of a submit, or goes on with the one that the caller's header `traceparent` names."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in _TRACED:
            await self._app(scope, receive, send)
            return
        parent = Headers(scope=scope).get("traceparent", "")
        with self._tracer.span(f"POST {scope['path']}", parent=parent, kind="server") as span:

            async def send_and_record(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set(status=message["status"])
                    if message["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        span.fail(str(message["status"]))
                await send(message)

            with request_context("", traceparent=self._tracer.traceparent()):
                await self._app(scope, receive, send_and_record)
