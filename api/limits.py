"""Limit the size of request bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem_response
from api.json_size import has_more_values
from shared.request import PromptItem

# An upload's own route limits its body while it arrives.
_UPLOADS = re.compile(r"PUT /v1/adapters/[^/]+|POST /v1/uploads|POST /v1/images/edits")

# More are allowed in a request with fewer prompts. 50,000 values take 0.6 s to validate, if all are wrong.
_LEVELS_OF_A_PROMPT = 32


class BodyLimit:
    """Reads a body before the application sees the request; answers 413 to one that is too large.

    The body of an upload is not read here.

    Args:
        max_bytes: size of the largest body.
        max_values: number of JSON values that a body may have.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_values: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_values = max_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _UPLOADS.fullmatch(f"{scope['method']} {scope['path']}"):
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
                # The rest of the body is still arriving, so the connection cannot carry another request.
                answer = _refusal(f"is larger than {self._max_bytes} bytes", headers={"Connection": "close"})
                await answer(scope, receive, send)
                return
        if has_more_values(b"".join(message.get("body", b"") for message in messages), self._max_values):
            await _refusal(f"has more than {self._max_values} values")(scope, receive, send)
            return

        async def receive_again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, receive_again, send)


def most_values(max_prompts: int) -> int:
    """Return the number of JSON values that a body may have, if it may have this many prompts."""
    # Every field of every prompt, and room for the fields of the request and its adapters.
    return max_prompts * (len(PromptItem.model_fields) + _LEVELS_OF_A_PROMPT) + 1000


def _refusal(problem: str, *, headers: Mapping[str, str] = {}) -> JSONResponse:
    return problem_response(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "BODY_TOO_LARGE",
        f"The request body {problem}; split it into several jobs, and upload its images with POST /v1/uploads",
        headers=headers,
    )
