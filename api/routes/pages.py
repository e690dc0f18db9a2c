"""The interactive pages of the HTTP reference, `/docs` and `/redoc`, with files that this process serves itself.

No page needs another host, so both work in an air gap, and neither has an inline script.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

# Where Swagger UI and ReDoc are installed; only its files are used.
_PACKAGE = "fastapi_offline"

# Addresses are relative, so that a proxy may serve the API below a path.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>flux2-queue</title>
<link rel="icon" href="docs/files/favicon.png">
{head}
</head>
<body>
{body}
</body>
</html>
"""
_SWAGGER = _PAGE.format(
    head='<link rel="stylesheet" href="docs/files/swagger-ui.css">',
    body='<div id="docs"></div>\n<script src="docs/files/swagger-ui-bundle.js"></script>\n'
    '<script src="docs/start.js"></script>',
)
_REDOC = _PAGE.format(
    head="",
    body='<redoc spec-url="openapi.json"></redoc>\n<script src="docs/files/redoc.standalone.js"></script>',
)
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def swagger() -> HTMLResponse:
    """Show the reference as forms with which requests can be tried."""
    return HTMLResponse(_SWAGGER)


@router.get("/docs/start.js")
async def start() -> Response:
    """Start Swagger UI."""
    return Response(_START, media_type="text/javascript")


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """Show the reference as one page to read."""
    return HTMLResponse(_REDOC)


def serve_pages(app: FastAPI) -> None:
    """Add the pages and their files; without the installed files, an application has no pages."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        return
    app.include_router(router)
    app.mount("/docs/files", StaticFiles(directory=Path(found.origin).parent / "static"))
