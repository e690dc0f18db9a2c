"""Parse the JSON of a safetensors header that may be malicious.

The parser walks the JSON entry by entry and refuses an oversized value before it is built in memory. It accepts less
than the safetensors library: a header that passes here can be opened there, but not the reverse.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shared.adapters.header_text import HeaderText
from shared.errors import HeaderFault
from shared.safetensors_header import DTYPE_BITS, METADATA, TensorInfo, check_size

# A LoRA on every linear layer of FLUX.2 [dev] has under 1,000 tensors, with names of 60 to 120 characters. At these
# caps the worst header of 64 MiB takes 1 s and 50 MB to parse.
MAX_TENSORS = 20_000
MAX_METADATA = 1_000
MAX_NAME_CHARS = 256
MAX_ENTRY_CHARS = 1024
MAX_DIMENSIONS = 8
# Trainers store tag counts, thumbnails and whole workflows, which nothing here interprets beyond this size.
MAX_VALUE_CHARS = 1024**2
MAX_VALUES_CHARS = 4 * MAX_VALUE_CHARS

# The library counts in 64 bits.
_MAX_INTEGER = 2**63 - 1
_SHOWN_CHARS = 80

# Characters of a JSON string. Half of a surrogate pair is left out: no later log or answer could encode it.
_CHARACTERS = re.compile(
    r'(?:[^"\\\x00-\x1f]++'
    r'|\\["\\/bfnrt]'
    r"|\\u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r")*+"
)
# A surrogate pair, as in "\ud83e\udd8a".
_LONGEST_CHARACTER = 12


@dataclass(frozen=True)
class Header:
    """The tensors of a file, in the order of its header, and its `__metadata__`.

    Attributes:
        omitted: entries of `__metadata__` that are too long to keep.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    omitted: frozenset[str] = frozenset()


def parse_header(text: HeaderText) -> Header:
    """Parse a header; the caller checks whether its tensors cover the data.

    Raises:
        HeaderFault: the text is not a header; the message says what is wrong and where.
    """
    return _Parser(text).parse()


class _Parser:
    """A walk over `{"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {"key": "value", ...}}`."""

    def __init__(self, text: HeaderText) -> None:
        self._text = text
        self._omitted: set[str] = set()

    def parse(self) -> Header:
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] | None = None
        for name in self._members("the header"):
            if name == METADATA:
                if metadata is not None:
                    raise HeaderFault("the header names '__metadata__' twice")
                metadata = self._metadata()
            elif name in tensors:
                raise HeaderFault(f"the header names {name!r} twice")
            elif len(tensors) == MAX_TENSORS:
                raise HeaderFault(f"more than {MAX_TENSORS} tensors")
            else:
                tensors[name] = self._tensor(name)
        if self._next():
            raise HeaderFault(f"the header has text after its JSON, at character {self._text.position}")
        return Header(tensors, metadata or {}, frozenset(self._omitted))

    def _members(self, where: str) -> Iterator[str]:
        """Yield the names of the object that starts here; the caller consumes each value before the next name."""
        self._expect("{", where)
        if self._next() == "}":
            self._text.at += 1
            return
        while True:
            name = self._name(where)
            self._expect(":", where)
            yield name
            if self._next() == "}":
                self._text.at += 1
                return
            self._expect(",", where)

    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = {}
        room = MAX_VALUES_CHARS
        if self._next() != "{":
            raise HeaderFault("__metadata__ is not an object")
        for name in self._members("__metadata__"):
            if name in metadata or name in self._omitted:
                raise HeaderFault(f"__metadata__ names {name!r} twice")
            if len(metadata) + len(self._omitted) == MAX_METADATA:
                raise HeaderFault(f"more than {MAX_METADATA} entries in __metadata__")
            if self._next() != '"':
                raise HeaderFault(f"__metadata__ {name!r} is not a string")
            value = self._value(max_chars=min(MAX_VALUE_CHARS, room))
            if value is None:
                self._omitted.add(name)
            else:
                metadata[name] = value
                room -= len(value)
        return metadata

    def _tensor(self, name: str) -> TensorInfo:
        """Parse one entry."""
        # A valid entry contains no braces, so it ends at the next brace and a nested bomb is never built.
        is_object = self._next() == "{"
        self._text.look_ahead(MAX_ENTRY_CHARS)
        start = self._text.at
        end = self._text.window.find("}", start, start + MAX_ENTRY_CHARS)
        if not is_object or end < 0:
            raise HeaderFault(f"tensor {name!r} is not described by an object of dtype, shape and data_offsets")
        self._text.at = end + 1
        return _tensor_info(name, self._text.window[start : end + 1])

    def _name(self, where: str) -> str:
        written = ""
        for piece in self._pieces(where):
            written += piece
            if len(written) > MAX_NAME_CHARS:
                raise HeaderFault(f"a name in {where} has more than {MAX_NAME_CHARS} characters")
        return _unescape(written)

    def _value(self, *, max_chars: int) -> str | None:
        """Consume a string and return it, or None if it is longer, as written, than `max_chars`."""
        pieces: list[str] = []
        count = 0
        for piece in self._pieces("__metadata__"):
            count += len(piece)
            if count <= max_chars:
                pieces.append(piece)
        return _unescape("".join(pieces)) if count <= max_chars else None

    def _pieces(self, where: str) -> Iterator[str]:
        """Consume a string; yield its characters as they are written."""
        self._expect('"', where)
        while True:
            piece = self._characters()
            if piece:
                yield piece
            if self._text.window.startswith('"', self._text.at):
                self._text.at += 1
                return
            if not piece:
                raise self._broken(where)

    def _characters(self) -> str:
        """Consume characters of a string up to its end, or up to the end of the window; return them as written."""
        self._text.look_ahead(_LONGEST_CHARACTER)
        start = self._text.at
        match = _CHARACTERS.match(self._text.window, start)
        self._text.at = start if match is None else match.end()
        return self._text.window[start : self._text.at]

    def _expect(self, mark: str, where: str) -> None:
        if self._next() != mark:
            raise self._broken(where)
        self._text.at += 1

    def _next(self) -> str:
        """Return the next character that is no white space, or nothing at the header's end; do not consume it."""
        self._text.skip_space()
        return self._text.window[self._text.at : self._text.at + 1]

    def _broken(self, where: str) -> HeaderFault:
        return HeaderFault(f"{where} is not valid JSON at character {self._text.position}")


def _unescape(written: str) -> str:
    return str(json.loads(f'"{written}"'))


def _tensor_info(name: str, text: str) -> TensorInfo:
    try:
        # As pairs: a dict would hide a key that occurs twice.
        pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise HeaderFault(f"tensor {name!r}: its entry is not valid JSON") from error
    entry = dict(pairs)
    if len(pairs) != 3 or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(
            f"tensor {name!r}: expected dtype, shape and data_offsets once each, got {_shown([k for k, _ in pairs])}"
        )
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderFault(f"tensor {name!r}: unknown dtype {_shown(dtype)}")
    shape = _naturals(name, "shape", entry["shape"])
    if len(shape) > MAX_DIMENSIONS:
        raise HeaderFault(f"tensor {name!r} has {len(shape)} dimensions, and the limit is {MAX_DIMENSIONS}")
    offsets = _naturals(name, "data_offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderFault(f"tensor {name!r}: data_offsets {_shown(list(offsets))} are not [start, end]")
    # Python reads -0 as the integer 0; to the library it is a fraction.
    if "-0" in text:
        raise HeaderFault(f"tensor {name!r}: -0 is not an integer of 0 or more")
    info = check_size(name, TensorInfo(dtype, shape, *offsets))
    # No bytes because of a size of 0, but the product of the others overflows in the library.
    if math.prod(size for size in shape if size) > _MAX_INTEGER // DTYPE_BITS[dtype]:
        raise HeaderFault(f"tensor {name!r}: shape {list(shape)} is too large")
    return info


def _naturals(name: str, what: str, value: object) -> tuple[int, ...]:
    # `type`, not isinstance: True is an int too.
    if not isinstance(value, list) or any(type(number) is not int or number < 0 for number in value):
        raise HeaderFault(f"tensor {name!r}: {what} {_shown(value)} is not a list of integers of 0 or more")
    if max(value, default=0) > _MAX_INTEGER:
        raise HeaderFault(f"tensor {name!r}: {what} {_shown(value)} has an integer above {_MAX_INTEGER}")
    return tuple(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
