"""Assemble the text of the ledger's Lua scripts from the files in `scripts/`."""

from __future__ import annotations

from functools import cache
from importlib import resources

# Parts that begin every script, in this order.
_COMMON_PARTS = ("prelude", "item_texts", "queue", "usage", "moves")
_SLOT_SCRIPTS = ("beat", "remove_slot", "claim_next", "peek_next", "release", "largest", "check_slots")
# Parts that some scripts share, and these scripts.
_PARTS = {
    "slot_kinds": _SLOT_SCRIPTS,
    "slots": _SLOT_SCRIPTS,
    "choose": ("claim_next", "peek_next"),
    "metrics": ("beat", "remove_slot", "add_metrics"),
    "tenants": ("accept", "list_jobs", "index_tenants", "sweep"),
    "key_use": ("accept",),
    "routes": ("outbox_reserve", "outbox_record", "outbox_resend"),
}


@cache
def scripts() -> dict[str, str]:
    """Return each script's whole text by its name: the common parts, the shared parts it needs, then its own file."""
    folder = resources.files("shared.ledger") / "scripts"
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in files}
    common = "".join(texts.pop(part) for part in _COMMON_PARTS)
    parts = {part: texts.pop(part) for part in _PARTS}
    return {
        name: "".join([common, *(parts[part] for part, users in _PARTS.items() if name in users), text])
        for name, text in texts.items()
    }
