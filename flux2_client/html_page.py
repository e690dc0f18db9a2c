"""Write pages that people open from a folder: they need no server and no network."""

from __future__ import annotations

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


def write_html(path: Path, body: Iterable[str], *, title: str, style: str, head: str = "") -> None:
    """Write a page.

    Args:
        body: lines of HTML.
        style: rules that follow those of all pages.
        head: further elements of the head.

    Raises:
        OutputRefused: the file cannot be written.
    """
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"{head}<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
        *body,
        "</body></html>",
    ]
    write_file(path, ("\n".join(lines) + "\n").encode())
