"""Assemble the text of the ledger's Lua scripts from the files in `scripts/`."""

from __future__ import annotations

from functools import cache
from importlib import resources

# Scripts that choose an item for a slot; the others leave out the code of choose.lua.
_CHOOSING = ("claim_next", "peek_next")


@cache
def scripts() -> dict[str, str]:
    """Return each script's whole text by its name: the prelude, for some the choice of an item, then its own file."""
    folder = resources.files("shared.ledger") / "scripts"
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in files}
    prelude, choose = texts.pop("prelude"), texts.pop("choose")
    return {name: prelude + (choose if name in _CHOOSING else "") + text for name, text in texts.items()}
