"""Read the header of an adapter file that may be malicious.

Adapter files come from strangers, so this runs before any library opens the file. It is pure Python, reads only the
header, and walks the JSON entry by entry: a bomb is refused where it starts, before it is built in memory.
`shared.safetensors_header` knows the file format; `shared.adapters.layout` decides what the tensors mean.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.adapters.signature import identify_format
from shared.errors import AdapterNotFound, AdapterRefused, HeaderFault
from shared.safetensors_header import (
    DTYPE_BITS,
    LENGTH_BYTES,
    METADATA,
    HeaderFrame,
    TensorInfo,
    check_size,
    check_tiling,
    read_frame,
    read_header_bytes,
)

# A LoRA on every linear layer of FLUX.2 [dev] has under 1,000 tensors and a header of about 0.1 MB. At these caps the
# worst header takes 0.2 s and 50 MB to parse.
MAX_HEADER_BYTES = 8 * 1024**2
MAX_TENSORS = 20_000
MAX_METADATA = 1_000
MAX_NAME_CHARS = 1024
MAX_ENTRY_CHARS = 1024

_SPACE = re.compile(r"[ \t\n\r]*")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Header:
    """A valid header: its tensors cover the data exactly. `tensors` keeps the order of the file's header."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path, *, max_bytes: int) -> Header:
    """Parse and check the header of the safetensors file at `path`.

    Args:
        max_bytes: files larger than this are refused unread.

    Raises:
        AdapterNotFound: no such file.
        AdapterRefused: the file is not valid safetensors; the message says what is wrong and where.
    """
    try:
        text, data_bytes = _read_text(path, max_bytes)
    except FileNotFoundError as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except OSError as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error.strerror}") from error
    try:
        header = _Parser(text).header()
        check_tiling(header.tensors, data_bytes)
    except HeaderFault as fault:
        raise AdapterRefused(f"{path.name}: {fault}") from fault
    return header


def _read_text(path: Path, max_bytes: int) -> tuple[str, int]:
    """Return the header's text and how many bytes of data follow it."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise AdapterRefused(f"{path.name}: not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise AdapterRefused(f"{path.name}: {size} bytes, and the limit is {max_bytes}")
        frame = read_frame(file, file_bytes=size)
        if not frame.is_plausible(max_header_bytes=MAX_HEADER_BYTES):
            raise AdapterRefused(f"{path.name}: {_frame_problem(frame)}")
        raw = read_header_bytes(file, frame)
    if len(raw) < frame.header_bytes:
        raise AdapterRefused(f"{path.name}: the file shrank while it was read")
    try:
        return raw.decode("utf-8"), frame.data_bytes
    except UnicodeDecodeError as error:
        where = LENGTH_BYTES + error.start
        raise AdapterRefused(f"{path.name}: the header is not UTF-8 at byte {where}") from error


def _frame_problem(frame: HeaderFrame) -> str:
    """Return why the file has no header; naming the format that it looks like helps people most."""
    start, size, length = frame.start, frame.file_bytes, frame.header_bytes
    if start[8:10] != b'{"' and (kind := identify_format(start)):
        return f"not a safetensors file; this is {kind}"
    if size < 8:
        return f"not a safetensors file; it has {size} bytes and the header's length alone takes 8"
    if length > size - 8:
        return (
            f"the header should have {length} bytes, but only {size - 8} follow its length; cut off or not safetensors"
        )
    if length > MAX_HEADER_BYTES:
        return f"the header has {length} bytes, and the limit is {MAX_HEADER_BYTES}"
    return f"the header of {length} bytes is not a JSON object"


class _Parser:
    """Walks `{"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {"key": "value", ...}}`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def header(self) -> Header:
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
        """Yield the names of the object that starts here; the caller consumes each value before the next."""
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
        """Parse one entry. A valid one holds no braces, so it ends at the next one and a nested bomb is never built."""
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
    if not isinstance(value, list) or any(type(number) is not int or number < 0 for number in value):
        raise HeaderFault(f"tensor {name!r}: {what} {value!r} is not a list of integers of 0 or more")
    return tuple(value)
