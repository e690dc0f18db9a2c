"""Read the header of an adapter file that may be malicious.

Adapter files come from strangers, so these checks run before any library opens the file. They are pure Python and read
the header, a piece at a time, and no byte after it. `shared.safetensors_header` knows the file format,
`shared.adapters.header_json` parses the JSON, and `shared.adapters.layout` decides what the tensors mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from shared.adapters.base_model import BASE_KEYS
from shared.adapters.header_json import MAX_VALUE_CHARS, Header, parse_header
from shared.adapters.header_text import HeaderText
from shared.adapters.opened import open_adapter
from shared.adapters.signature import identify_format
from shared.adapters.strength import HEADER_CONFIG, PLAIN_ALPHAS
from shared.errors import AdapterCheckBusy, AdapterRefused, HeaderFault
from shared.safetensors_header import HeaderFrame, check_tiling, read_frame, read_start

# A LoRA on every linear layer of FLUX.2 [dev] has a header of about 0.1 MB, plus what the trainer or an editor of
# images adds to `__metadata__`. The safetensors library refuses 100 MB.
MAX_HEADER_BYTES = 64 * 1024**2

# Entries of `__metadata__` that decide how an adapter is applied, so none of them may be skipped.
_DECISIVE = frozenset({HEADER_CONFIG, *PLAIN_ALPHAS, *BASE_KEYS})

# Larger headers are parsed one at a time: Python threads would not parse two faster, and each takes up to 50 MB.
_LARGE_HEADER_BYTES = 1024**2
_large_header = Lock()
# A caller that waits holds one of the API's 40 threads, which also answer polls.
_MAX_WAIT_S = 5.0


def read_header(path: Path, *, max_bytes: int) -> Header:
    """Parse and check the header of the safetensors file at `path`.

    Args:
        max_bytes: size above which a file is refused without reading it.

    Raises:
        AdapterNotFound, AdapterRefused: see `open_adapter`.
        AdapterRefused: the file is not valid safetensors; the message says what is wrong and where.
        AdapterCheckBusy: other large headers were parsed for the last 5 s.
    """
    with open_adapter(path) as file:
        return read_open_header(file, max_bytes=max_bytes)


def read_open_header(file: BinaryIO, *, max_bytes: int, large: Lock = _large_header) -> Header:
    """Parse and check the header of an open file; see `read_header`.

    Args:
        large: held while a large header is read and parsed. Files that may be read slowly have one of their own.
    """
    name = Path(file.name).name
    frame = _read_frame(file, name, max_bytes)
    try:
        with _turn(frame, large):
            header = parse_header(HeaderText(file, frame))
            check_tiling(header.tensors, frame.data_bytes)
        _check_metadata(header)
    except HeaderFault as fault:
        raise AdapterRefused(f"{name}: {fault}") from fault
    return header


@contextmanager
def _turn(frame: HeaderFrame, large: Lock) -> Iterator[None]:
    """Let a large header wait until no other is parsed."""
    if frame.header_bytes <= _LARGE_HEADER_BYTES:
        yield
        return
    if not large.acquire(timeout=_MAX_WAIT_S):
        raise AdapterCheckBusy
    try:
        yield
    finally:
        large.release()


def _check_metadata(header: Header) -> None:
    for name in sorted(header.omitted & _DECISIVE):
        raise HeaderFault(f"__metadata__ {name!r} is too long to be read; the limit is {MAX_VALUE_CHARS} characters")


def _read_frame(file: BinaryIO, name: str, max_bytes: int) -> HeaderFrame:
    size = file.seek(0, os.SEEK_END)
    if size > max_bytes:
        raise AdapterRefused(f"{name} has {size} bytes, and the limit is {max_bytes}")
    frame = read_frame(file, file_bytes=size)
    if not frame.is_plausible(max_header_bytes=MAX_HEADER_BYTES):
        raise AdapterRefused(f"{name}: {_frame_problem(frame, read_start(file, frame))}")
    return frame


def _frame_problem(frame: HeaderFrame, start: bytes) -> str:
    """Return the reason why the file has no header."""
    # Naming the format that the file looks like helps people most.
    size, length = frame.file_bytes, frame.header_bytes
    # A header that begins properly belongs to a safetensors file, even if the stated length is wrong.
    if start[8:10] != b'{"' and (kind := identify_format(start)):
        return f"not a safetensors file; this is {kind}"
    if size < 8:
        return f"not a safetensors file; it has {size} bytes and the header's length alone takes 8"
    if length > size - 8:
        return (
            f"the header should have {length} bytes, but only {size - 8} follow its length; the file is cut off or not "
            "safetensors; copy or download it again"
        )
    if length > MAX_HEADER_BYTES:
        return f"the header has {length} bytes, and the limit is {MAX_HEADER_BYTES}"
    return f"the header of {length} bytes is not a JSON object"
