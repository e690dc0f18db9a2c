"""Tables, and the parts of a page that are written from the code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")
# An underscore within a word is none.
_MARKUP = re.compile(r"(?<!\\)([*\[\]]|(?<!\w)_|_(?!\w))")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell is one line of Markdown."""
    lines = [_row(header), "|" + "---|" * len(header), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Escape what Markdown would take for markup in a text of the code, except code between backticks."""
    parts = _CODE.split(text)
    parts[::2] = [_MARKUP.sub(r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def paragraphs(text: str) -> str:
    """Return a docstring's paragraphs with a line each."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def replace_part(page: str, name: str, body: str) -> str:
    """Return a page with another text in the part that comments name.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {name}: written by python -m tools.reference -->", f"<!-- end of {name} -->"
    found = re.search(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", page, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no part between {begin} and {end}; add both lines where the part belongs")
    return f"{page[: found.start()]}\n{body.strip()}\n\n{page[found.end() :]}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"
