"""Answer a defect inside the doors, so that its answer has the headers of every other one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import answer_defect


class Defects:
    """Answers 500 to a request that raised an unexpected error, unless its answer has begun.

    Starlette's handler of such errors runs outside all other middleware, where nobody adds the headers that bind
    browsers, and CORS. It stays for errors of the middleware outside this one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_and_remember(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_remember)
        except Exception as error:
            if has_begun:
                raise
            await answer_defect(Request(scope), error)(scope, receive, send)
