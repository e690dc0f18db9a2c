"""Require JSON bodies to be declared as JSON, and describe where broken ones break.

A browser sends a body of another type across origins without asking the server first. So any web page could submit jobs
to an API on loopback if the API read such bodies.
"""

from __future__ import annotations

from email.message import Message
from json import JSONDecodeError

from fastapi import Request

from shared.errors import ContentTypeRefused

# Characters of a caller's header that a message repeats.
_SHOWN_CHARS = 100

# What Python's decoder expects, by its words; its other messages say what is wrong and not what would be right.
_EXPECTED = {
    "Expecting value": "a value",
    "Expecting property name enclosed in double quotes": "a name in double quotes",
    "Expecting ':' delimiter": "':'",
    "Expecting ',' delimiter": "',' or a closing bracket",
    "Extra data": "the end of the body",
}


async def require_json(request: Request) -> None:
    """Refuse a body whose content type is not JSON; a dependency of each endpoint that reads a body.

    Raises:
        ContentTypeRefused: FastAPI would not parse the body either, and would call it an invalid object.
    """
    content_type = request.headers.get("content-type", "")
    if _is_json(content_type) or not (content_type or await request.body()):
        return
    raise type_refused(content_type)


def type_refused(content_type: str) -> ContentTypeRefused:
    """Return the error about a body that is not declared as JSON."""
    found = f"is declared as {content_type[:_SHOWN_CHARS]!r}" if content_type else "has no content type"
    return ContentTypeRefused(
        f"the body {found}; send content-type: application/json (with curl: -H 'content-type: application/json', or "
        "--json instead of -d)"
    )


def _is_json(content_type: str) -> bool:
    # The rule by which FastAPI parses a body, which accepts parameters and any case.
    header = Message()
    header["content-type"] = content_type
    subtype = header.get_content_subtype()
    return header.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def describe_json_fault(text: str, position: int, words: str) -> str:
    """Return what is wrong with a JSON text, and where.

    Args:
        position: index of the fault in `text`.
        words: the decoder's words, e.g. "Expecting value".
    """
    fault = JSONDecodeError(words, text, position)
    place = f"the body is not JSON: line {fault.lineno}, column {fault.colno}"
    if words not in _EXPECTED:
        # The decoder ends some of its messages with "at", to be followed by the place.
        return f"{place}: {words[:1].lower()}{words[1:].removesuffix(' at').removesuffix(' starting')}"
    # One character and no more: a body may hold secrets.
    found = repr(text[position]) if position < len(text) else "the end of the body"
    return f"{place}: expected {_EXPECTED[words]}, found {found}"


def describe_unreadable_body(error: BaseException | None) -> str | None:
    """Return why a body could not be decoded or parsed; None if another cause than the body is possible."""
    match error:
        case UnicodeDecodeError():
            before = error.object[: error.start].decode(error.encoding, "replace")
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            return (
                f"the body is not {error.encoding.upper()}: line {line}, column {column} has the invalid byte "
                f"0x{error.object[error.start]:02x} (offset {error.start}); send JSON in UTF-8"
            )
        case RecursionError():
            return "the body has too many levels of lists and objects; see /docs for its form"
        case _:
            return None
