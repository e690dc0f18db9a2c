"""Make the text of other people safe to show in logs and on terminals.

Prompts, paths, headers and answers may hold characters that are commands. A line break forges a second line of a log,
ESC and the C1 controls make a terminal do things, and the controls of bidirectional text show a name in another order
than it has. Letters of every script stay as they are.
"""

from __future__ import annotations

import re

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 controls with ESC, CR and LF; DEL; C1 controls, which 8-bit terminals obey
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of bidirectional text
    "\u2028\u2029"  # line and paragraph separators
    # Invisible: a text that holds them is not what it seems. The joiners of emoji and Persian, U+200C and U+200D, stay.
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff"  # lone surrogates, which no encoding can write
    "]"
)


def escape_controls(text: str) -> str:
    """Return the text with every character that is not shown as itself written as Python does, such as `\\x1b`."""
    return _UNSAFE.sub(_escaped, text)


def escape_block(text: str, *, indent: str) -> str:
    """Do the same with each line of a text of several lines, such as a traceback, and indent those after the first.

    A line break inside a value then begins no line that could pass for another message.
    """
    return f"\n{indent}".join(map(escape_controls, text.split("\n")))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
