"""Read the frame of a safetensors file, and check the entries of its header.

`shared.adapters.header` parses the headers of files from strangers and limits all sizes;
`worker.checkpoint.tensor_files` parses those of the operator's own checkpoints.

Source:
    https://huggingface.co/docs/safetensors#format: the header's length in 8 bytes, little-endian; a JSON object; data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from shared.errors import HeaderFault

#: End of the name of a safetensors file.
SUFFIX = ".safetensors"
#: Bytes before the header, which hold its length.
LENGTH_BYTES = 8
#: The entry of a header that describes no tensor.
METADATA = "__metadata__"

# Enough of a file's start to recognise its format if it has no header.
_START_BYTES = 512

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """One tensor; `start` and `end` are byte offsets into the data that follows the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class HeaderFrame:
    """The sizes around a header, which are known before the header is read.

    Attributes:
        start: the header's length and its first byte, or less if the file is shorter.
        file_bytes: size of the file.
        header_bytes: size of the header, as the file states it.
    """

    start: bytes
    file_bytes: int
    header_bytes: int

    @property
    def data_start(self) -> int:
        """Offset of the data in the file."""
        return LENGTH_BYTES + self.header_bytes

    @property
    def data_bytes(self) -> int:
        """Size of the data; negative if the file ends inside the header."""
        return self.file_bytes - self.data_start

    def is_plausible(self, *, max_header_bytes: int) -> bool:
        """Whether a JSON object of at most `max_header_bytes` begins here and ends inside the file."""
        room = min(self.file_bytes - LENGTH_BYTES, max_header_bytes)
        return 2 <= self.header_bytes <= room and self.start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def read_frame(file: BinaryIO, *, file_bytes: int) -> HeaderFrame:
    """Read the frame at the start of an open file of this size."""
    file.seek(0)
    start = file.read(LENGTH_BYTES)
    header_bytes = int.from_bytes(start, "little")
    # Not more: a tensor's bytes follow a short header.
    return HeaderFrame(start + file.read(min(1, header_bytes)), file_bytes, header_bytes)


def read_start(file: BinaryIO, frame: HeaderFrame) -> bytes:
    """Return up to 512 bytes from the start of a file without a plausible header, to recognise its format."""
    file.seek(0)
    return file.read(min(_START_BYTES, frame.data_start))


def read_header_bytes(file: BinaryIO, frame: HeaderFrame) -> bytes:
    """Return the JSON of a plausible header; it is shorter if the file has shrunk since `read_frame`."""
    file.seek(LENGTH_BYTES)
    return file.read(frame.header_bytes)


def check_size(name: str, info: TensorInfo) -> TensorInfo:
    """Check that the offsets of a tensor span the bytes of its dtype and shape; return `info`.

    Raises:
        HeaderFault: they span another number of bytes.
    """
    bits = math.prod(info.shape) * DTYPE_BITS[info.dtype]
    if bits != 8 * (info.end - info.start):
        raise HeaderFault(
            f"tensor {name!r}: {info.dtype} of shape {list(info.shape)} takes {-(-bits // 8)} bytes, "
            f"but data_offsets give it {info.end - info.start}"
        )
    return info


def check_tiling(tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    """Check that the tensors cover the data exactly, without overlap or gap.

    Raises:
        HeaderFault: they do not; the message names a tensor.
    """
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.start < position:
            raise HeaderFault(
                f"tensor {name!r} starts at {info.start}, inside the tensor before it, which ends at {position}"
            )
        if info.start > position:
            raise HeaderFault(
                f"tensor {name!r} starts at {info.start}, after a gap; the tensor before it ends at {position}"
            )
        if info.end > data_bytes:
            raise HeaderFault(
                f"tensor {name!r} ends at {info.end}, but the data is cut off at {data_bytes}; copy or download the "
                "file again"
            )
        position = info.end
    if position < data_bytes:
        raise HeaderFault(f"{data_bytes - position} bytes follow the last tensor")
