"""The console: a page at `/` that talks to this API, and its files, which this process serves itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from api.deps import ServicesDep
from api.doors.roles import Anybody
from shared.errors import StorageUnavailable
from shared.storage import ObjectStore

_FOLDER: Final = Path(__file__).parents[1] / "console"

# A browser asks each time whether a file has changed: files of two versions of the page must not meet.
_FRESH: Final = {"cache-control": "no-cache"}

# The page has no inline script or style. Previews arrive as data URLs, and dropped files are shown as blobs.
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob: {images}; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'; object-src 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
def index(services: ServicesDep, _caller: Anybody) -> FileResponse:
    """Show the console; it asks for an API key itself, if this API wants one."""
    policy = _POLICY.format(images=_image_origin(services.store))
    return FileResponse(_FOLDER / "index.html", headers={**_FRESH, "content-security-policy": policy})


def _image_origin(store: ObjectStore) -> str:
    """Return where a browser finds the store's images, e.g. `https://s3.example.com`; empty if it cannot."""
    try:
        url = urlsplit(store.url("results/any", expires_s=60))
    except StorageUnavailable:
        # No credentials: there are no images to show either.
        return ""
    return f"{url.scheme}://{url.netloc}" if url.scheme in ("http", "https") else ""


class _ConsoleFiles(StaticFiles):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_fresh(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.encode(), value.encode()) for name, value in _FRESH.items()]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await super().__call__(scope, receive, send_fresh)


def serve_console(app: FastAPI) -> None:
    """Add the page and its files."""
    app.include_router(router)
    app.mount("/console", _ConsoleFiles(directory=_FOLDER / "files"))
