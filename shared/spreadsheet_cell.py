"""Write text of other people into CSV files, which spreadsheets open."""

from __future__ import annotations

import re
from typing import Final

# Spreadsheets run a cell that begins so as a formula, with the rights of whoever opens the file. Where the comma is the
# decimal sign, a semicolon ends a cell. The last four signs are the wide forms of the others, which some take for them.
_FORMULA_START: Final = re.compile("(^|;)(?=\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r])")


def harmless_cell(text: str) -> str:
    """Return a text with an apostrophe before what a spreadsheet would run as a formula."""
    return _FORMULA_START.sub(r"\1'", text)
