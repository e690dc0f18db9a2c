"""Read the header of an adapter file that may be malicious.

Adapter files come from strangers, so these checks run before any library opens the file. They are pure Python and read
only the header. `shared.safetensors_header` knows the file format, `shared.adapters.header_json` parses the JSON, and
`shared.adapters.layout` decides what the tensors mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from shared.adapters.header_json import Header, parse_header
from shared.adapters.opened import open_adapter
from shared.adapters.signature import identify_format
from shared.errors import AdapterRefused, HeaderFault
from shared.safetensors_header import LENGTH_BYTES, HeaderFrame, check_tiling, read_frame, read_header_bytes

# A LoRA on every linear layer of FLUX.2 [dev] has a header of about 0.1 MB.
MAX_HEADER_BYTES = 8 * 1024**2


def read_header(path: Path, *, max_bytes: int) -> Header:
    """Parse and check the header of the safetensors file at `path`.

    Args:
        max_bytes: size above which a file is refused without reading it.

    Raises:
        AdapterNotFound, AdapterRefused: see `open_adapter`.
        AdapterRefused: the file is not valid safetensors; the message says what is wrong and where.
    """
    with open_adapter(path) as file:
        return read_open_header(file, max_bytes=max_bytes)


def read_open_header(file: BinaryIO, *, max_bytes: int) -> Header:
    """Parse and check the header of an open file; see `read_header`."""
    name = Path(file.name).name
    text, data_bytes = _read_text(file, name, max_bytes)
    try:
        header = parse_header(text)
        check_tiling(header.tensors, data_bytes)
    except HeaderFault as fault:
        raise AdapterRefused(f"{name}: {fault}") from fault
    return header


def _read_text(file: BinaryIO, name: str, max_bytes: int) -> tuple[str, int]:
    """Return the header's text and the number of data bytes that follow it."""
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise AdapterRefused(f"{name} has {size} bytes, and the limit is {max_bytes}")
    frame = read_frame(file, file_bytes=size)
    if not frame.is_plausible(max_header_bytes=MAX_HEADER_BYTES):
        raise AdapterRefused(f"{name}: {_frame_problem(frame)}")
    raw = read_header_bytes(file, frame)
    if len(raw) < frame.header_bytes:
        raise AdapterRefused(f"{name}: the file shrank while it was read; submit again when it is complete")
    try:
        return raw.decode("utf-8"), frame.data_bytes
    except UnicodeDecodeError as error:
        where = LENGTH_BYTES + error.start
        raise AdapterRefused(f"{name}: the header is not UTF-8 at byte {where}") from error


def _frame_problem(frame: HeaderFrame) -> str:
    """Return the reason why the file has no header."""
    # Naming the format that the file looks like helps people most.
    start, size, length = frame.start, frame.file_bytes, frame.header_bytes
    # A header that begins properly belongs to a safetensors file, even if the stated length is wrong.
    if start[8:10] != b'{"' and (kind := identify_format(start)):
        return f"not a safetensors file; this is {kind}"
    if size < 8:
        return f"not a safetensors file; it has {size} bytes and the header's length alone takes 8"
    if length > size - 8:
        return (
            f"the header should have {length} bytes, but only {size - 8} follow its length; the file is cut off or not "
            "safetensors"
        )
    if length > MAX_HEADER_BYTES:
        return f"the header has {length} bytes, and the limit is {MAX_HEADER_BYTES}"
    return f"the header of {length} bytes is not a JSON object"
