"""Assemble the text of the ledger's Lua scripts from the files in `scripts/`.

Redis runs a script's whole text at each call, and defining the common parts took a fifth of a claim's time, and made
half of its garbage. So a script gets only the definitions that it uses, and the names of keys and plain
numbers stand where they are used.
"""

from __future__ import annotations

import re
from functools import cache, partial
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
    "tenants": ("accept", "list_jobs", "index_tenants", "forget"),
    "spread": ("outlook", "outlook_lanes"),
    "key_use": ("accept",),
    "routes": ("outbox_reserve", "outbox_record", "outbox_resend"),
}

_COMMENT = re.compile(r"^[ \t]*--.*\n", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_]\w*")
_DEFINITION = re.compile(
    # A function in one line, a function up to an `end` without indentation, or the name of a key.
    r"^local function (\w+)\(.*\) .* end\n|^local function (\w+)(?:.*\n)*?end\n|^local ([A-Z_]+) = PREFIX .*\n",
    re.MULTILINE,
)
_PREFIX = re.compile(r"^local PREFIX = '(.*)'\n", re.MULTILINE)
_CONSTANT = re.compile(r"^local ([A-Z_]+) = ('[^']*'|\d+)\n", re.MULTILINE)
_KEY_FUNCTION = re.compile(r"^local function (\w+_key)\((.*)\) return ((?:'[^']*'|\w+| \.\. )+) end\n", re.MULTILINE)
# Calls within the arguments have no calls in theirs.
_ARGUMENTS = r"((?:[^()]|\([^()]*\))*)"
_COMMA = re.compile(r", (?![^()]*\))")


@cache
def scripts() -> dict[str, str]:
    """Return each script's whole text by its name: the common parts, the shared parts it needs, then its own file."""
    folder = resources.files("shared.ledger") / "scripts"
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    texts = {path.name.removesuffix(".lua"): path.read_text() for path in files}
    common = "".join(texts.pop(part) for part in _COMMON_PARTS)
    parts = {part: texts.pop(part) for part in _PARTS}
    return {
        name: without_unused(
            inlined("".join([common, *(parts[part] for part, users in _PARTS.items() if name in users), text]))
        )
        for name, text in texts.items()
    }


def inlined(text: str) -> str:
    """Put constants of one string or number, and the bodies of the functions that build keys, where they are used."""
    text = _COMMENT.sub("", text)
    if prefix := _PREFIX.search(text):
        # Lua would join the two strings at each call.
        text = text.replace("PREFIX .. '", "'" + prefix[1])
    for name, value in _CONSTANT.findall(text):
        text = re.sub(rf"^local {name} = .*\n", "", text, flags=re.MULTILINE)
        text = re.sub(rf"\b{name}\b", value, text)
    for name, parameters, body in _KEY_FUNCTION.findall(text):
        call = partial(_key_text, parameters.split(", "), body)
        text = re.sub(rf"(?<!function )\b{name}\({_ARGUMENTS}\)", call, text)
    return text


def _key_text(parameters: list[str], body: str, call: re.Match[str]) -> str:
    texts = (text if " " not in text else f"({text})" for text in _COMMA.split(call[1]))
    arguments = dict(zip(parameters, texts, strict=True))
    return "(" + " .. ".join(arguments.get(word, word) for word in body.split(" .. ")) + ")"


def without_unused(text: str) -> str:
    """Drop comments, and the functions and names of keys at the top level of a script that nothing in it uses."""
    pieces = _split(_COMMENT.sub("", text))
    defined: dict[str, set[str]] = {}
    for name, piece in pieces:
        defined.setdefault(name, set()).update(_NAME.findall(piece))
    used, unseen = set[str](), {""}
    while unseen:
        used |= unseen
        unseen = {name for user in unseen for name in defined[user] if name in defined} - used
    return "".join(piece for name, piece in pieces if name in used)


def _split(text: str) -> list[tuple[str, str]]:
    """Split a script into its definitions, each with its name, and what is between them, with an empty name."""
    pieces, position = [], 0
    for found in _DEFINITION.finditer(text):
        pieces.append(("", text[position : found.start()]))
        pieces.append((next(name for name in found.groups() if name), found[0]))
        position = found.end()
    return [*pieces, ("", text[position:])]
