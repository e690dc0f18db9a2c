"""Write pages that people open from a folder: they need no server and no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape as escape_markup
from pathlib import Path
from typing import Final

from shared.outputs import write_file
from shared.visible_text import escape_controls

#: Name of a page in the folder of its images.
PAGE: Final = "index.html"

_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 100rem; padding: 0 1rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #8882; }
"""


def escape(text: str) -> str:
    """Return a text of other people as a page may show it, in an element or in an attribute."""
    return escape_markup(escape_controls(text))


def write_html(path: Path, body: Iterable[str], *, title: str, style: str, script: str = "") -> None:
    """Write a page.

    Args:
        body: lines of HTML.
        style: rules that follow those of all pages.
        script: runs when the page is there. The policy of a page with a script lets it fetch nothing, and show images
            of the page itself alone.

    Raises:
        OutputRefused: the file cannot be written.
    """
    style = _STYLE + style
    policy = _policy(style, script) if script else ""
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"{policy}<title>{escape(title)}</title><style>{style}</style></head><body>",
        *body,
        *([f"<script>{script}</script>"] if script else []),
        "</body></html>",
    ]
    write_file(path, ("\n".join(lines) + "\n").encode())


def _policy(style: str, script: str) -> str:
    rules = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    # Browsers ask a server for an icon that no page names.
    return (
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{rules}; base-uri 'none'; form-action 'none'\">"
        '<link rel="icon" href="data:,">'
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
