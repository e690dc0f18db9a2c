"""End streams that their callers do not read.

Such a stream of events would hold its place, and go on after the time at which the caller's key is checked again: it
ends only between two of its events. Images that are sent piece by piece would hold memory.
"""

from __future__ import annotations

import logging
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("flux2.api.streams")

_PATH_ENDS: Final = ("/events", "/archive", "/images/generations", "/images/edits")
# A caller on a slow network reads something within this time.
_PATIENCE_S: Final = 60.0


class StalledStreams:
    """Cancels a call whose stream stands still; the server then ends the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(_PATH_ENDS):
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as call:

            async def send_in_time(message: Message) -> None:
                with anyio.move_on_after(_PATIENCE_S) as turn:
                    await send(message)
                if turn.cancelled_caught:
                    logger.info("stream ended: its caller does not read it", extra={"path": scope["path"]})
                    call.cancel()

            await self._app(scope, receive, send_in_time)
