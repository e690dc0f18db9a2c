"""Give errors OpenAI's form on the paths of its interface, whichever part of the API they come from."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import MEDIA_TYPE
from api.schemas.openai_images import OpenAIError, OpenAIFault

# OpenAI's clients repeat calls with these statuses, but the images of a repeat would fail too, or be rendered twice.
_FINAL: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT)

#: The paths of OpenAI's interface.
PATHS: Final = frozenset({"/v1/images/generations", "/v1/images/edits"})


class OpenAIErrors:
    """Rewrites the problems that the application answers on OpenAI's paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def send_rewritten(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_problem(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send_error(start, json.loads(body), send)

        await self._app(scope, receive, send_rewritten)


def _is_problem(start: Message) -> bool:
    return Headers(raw=start.get("headers", [])).get("content-type", "").startswith(MEDIA_TYPE)


async def _send_error(start: Message, problem: dict[str, Any], send: Send) -> None:
    fields = problem["errors"]
    fault = OpenAIFault(
        message=problem["detail"],
        type="server_error" if start["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error",
        param=fields[0]["path"] if fields else None,
        code=problem["code"],
    )
    body = OpenAIError(error=fault).model_dump_json().encode()
    headers = MutableHeaders(raw=list(start.get("headers", [])))
    headers["content-type"], headers["content-length"] = "application/json", str(len(body))
    if start["status"] in _FINAL:
        headers["x-should-retry"] = "false"
    await send({**start, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})
