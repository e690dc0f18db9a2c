"""Parse the JSON of a safetensors header that may be malicious.

The parser walks the JSON entry by entry and refuses an oversized value before it is built in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shared.errors import HeaderFault
from shared.safetensors_header import DTYPE_BITS, METADATA, TensorInfo, check_size

# A LoRA on every linear layer of FLUX.2 [dev] has under 1,000 tensors. At these caps the worst header of 8 MiB takes
# 0.2 s and 50 MB to parse.
MAX_TENSORS = 20_000
MAX_METADATA = 1_000
MAX_NAME_CHARS = 1024
MAX_ENTRY_CHARS = 1024

_SPACE = re.compile(r"[ \t\n\r]*")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Header:
    """The tensors of a file, in the order of its header, and its `__metadata__`."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def parse_header(text: str) -> Header:
    """Parse a header; the caller checks whether its tensors cover the data.

    Raises:
        HeaderFault: the text is not a header; the message says what is wrong and where.
    """
    return _Parser(text).parse()


class _Parser:
    """A walk over `{"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {"key": "value", ...}}`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

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
        if _skip(self.text, self.at) != len(self.text):
            raise HeaderFault(f"the header has text after its JSON, at character {self.at}")
        return Header(tensors, metadata or {})

    def _members(self, where: str) -> Iterator[str]:
        """Yield the names of the object that starts here; the caller consumes each value before the next name."""
        self._expect("{", where)
        if self._next() == "}":
            self.at += 1
            return
        while True:
            name = self._string(where)
            if len(name) > MAX_NAME_CHARS:
                raise HeaderFault(f"a name in {where} has {len(name)} characters, and the limit is {MAX_NAME_CHARS}")
            self._expect(":", where)
            yield name
            if self._next() == "}":
                self.at += 1
                return
            self._expect(",", where)

    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = {}
        if self._next() != "{":
            raise HeaderFault("__metadata__ is not an object")
        for name in self._members("__metadata__"):
            if name in metadata:
                raise HeaderFault(f"__metadata__ names {name!r} twice")
            if len(metadata) == MAX_METADATA:
                raise HeaderFault(f"more than {MAX_METADATA} entries in __metadata__")
            if self._next() != '"':
                raise HeaderFault(f"__metadata__ {name!r} is not a string")
            metadata[name] = self._string("__metadata__")
        return metadata

    def _tensor(self, name: str) -> TensorInfo:
        """Parse one entry."""
        # A valid entry contains no braces, so it ends at the next brace and a nested bomb is never built.
        start = _skip(self.text, self.at)
        end = self.text.find("}", start, start + MAX_ENTRY_CHARS)
        if not self.text.startswith("{", start) or end < 0:
            raise HeaderFault(f"tensor {name!r} is not described by an object of dtype, shape and data_offsets")
        self.at = end + 1
        return _tensor_info(name, self.text[start : end + 1])

    def _string(self, where: str) -> str:
        if self._next() != '"':
            raise self._broken(where)
        try:
            value, self.at = _JSON.raw_decode(self.text, self.at)
            # JSON may escape half of a surrogate pair, which no later log or answer could encode.
            str(value).encode("utf-8")
        except ValueError as error:
            raise self._broken(where) from error
        return str(value)

    def _expect(self, mark: str, where: str) -> None:
        if self._next() != mark:
            raise self._broken(where)
        self.at += 1

    def _next(self) -> str:
        self.at = _skip(self.text, self.at)
        return self.text[self.at : self.at + 1]

    def _broken(self, where: str) -> HeaderFault:
        return HeaderFault(f"{where} is not valid JSON at character {self.at}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _tensor_info(name: str, text: str) -> TensorInfo:
    try:
        # As pairs: a dict would hide a key that occurs twice.
        pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise HeaderFault(f"tensor {name!r}: its entry is not valid JSON") from error
    entry = dict(pairs)
    if len(pairs) != 3 or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(
            f"tensor {name!r}: expected dtype, shape and data_offsets once each, got {[k for k, _ in pairs]}"
        )
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderFault(f"tensor {name!r}: unknown dtype {dtype!r}")
    shape = _naturals(name, "shape", entry["shape"])
    offsets = _naturals(name, "data_offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderFault(f"tensor {name!r}: data_offsets {list(offsets)} are not [start, end]")
    return check_size(name, TensorInfo(dtype, shape, *offsets))


def _naturals(name: str, what: str, value: object) -> tuple[int, ...]:
    # `type`, not isinstance: True is an int too.
    if not isinstance(value, list) or any(type(number) is not int or number < 0 for number in value):
        raise HeaderFault(f"tensor {name!r}: {what} {value!r} is not a list of integers of 0 or more")
    return tuple(value)
