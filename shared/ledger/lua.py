"""Assemble the text of the ledger's Lua scripts from the files in `scripts/`."""

from __future__ import annotations

from functools import cache
from importlib import resources

# Parts that several scripts share, and the scripts that begin with them; the prelude begins them all.
_PARTS = {
    "choose": ("claim_next", "peek_next"),
    "routes": ("outbox_reserve", "outbox_record"),
}


@cache
def scripts() -> dict[str, str]:
    """Return each script's whole text by its name: the prelude, the shared parts that it needs, then its own file."""
    folder = resources.files("shared.ledger") / "scripts"
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in files}
    prelude, parts = texts.pop("prelude"), {part: texts.pop(part) for part in _PARTS}
    return {
        name: "".join([prelude, *(parts[part] for part, users in _PARTS.items() if name in users), text])
        for name, text in texts.items()
    }
