"""Limit the size of request bodies."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem_response


class BodyLimit:
    """Reads a body of up to `max_bytes` before the application sees the request; answers 413 to a larger one."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        size = 0
        more = True
        while more:
            message = await receive()
            messages.append(message)
            # Counted while it streams in: a Content-Length can be wrong, and a chunked body has none.
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self._max_bytes:
                answer = problem_response(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "BODY_TOO_LARGE",
                    f"The request body is larger than {self._max_bytes} bytes; split it into several jobs",
                    # The rest of the body is still arriving, so the connection cannot carry another request.
                    headers={"Connection": "close"},
                )
                await answer(scope, receive, send)
                return

        async def receive_again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, receive_again, send)
