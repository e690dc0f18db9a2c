"""List the tensors of safetensors files from the headers, and read their values on demand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shared.errors import CheckpointError, HeaderFault
from shared.safetensors_header import (
    DTYPE_BITS,
    METADATA,
    TensorInfo,
    check_size,
    check_tiling,
    read_frame,
    read_header_bytes,
)
from worker.checkpoint.reader import Region

# The safetensors library refuses larger headers too.
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# A training counter that some exports omit; evaluation never reads it.
OPTIONAL = frozenset({"bn.num_batches_tracked"})
_OPTIONAL_DTYPES = {"I64": torch.int64, "I32": torch.int32}


@dataclass(frozen=True)
class FileHeader:
    """The header of one safetensors file.

    Attributes:
        text: its JSON, as in the file.
        data_start: offset of the data in the file.
        version: size and time of modification of the file that it was read from.
    """

    text: bytes
    data_start: int
    tensors: Mapping[str, TensorInfo]
    version: tuple[int, int]

    def check_unchanged(self, file: Path) -> None:
        """Raise unless `file` is still the one whose header this is.

        Raises:
            CheckpointError: it was replaced, written to or removed.
        """
        try:
            version = _version(file.stat())
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if version != self.version:
            raise CheckpointError(f"{file}: the file has changed since loading began; start again when it is complete")


def _version(info: os.stat_result) -> tuple[int, int]:
    # Without the inode, whose number changes between calls on some network file systems.
    return info.st_size, info.st_mtime_ns


def read_file_header(file: Path) -> FileHeader:
    """Read and check the header of a checkpoint's file.

    Raises:
        CheckpointError: the file cannot be read, or its header is unsound.
    """
    try:
        with file.open("rb") as opened:
            info = os.fstat(opened.fileno())
            # Only the header is read: a transformer's file has 64 GB.
            frame = read_frame(opened, file_bytes=info.st_size)
            if not frame.is_plausible(max_header_bytes=_MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file}: not a safetensors file, or cut off inside its header; download it again"
                )
            text = read_header_bytes(opened, frame)
        tensors = _parse(text)
        check_tiling(tensors, frame.data_bytes)
    except (OSError, ValueError, HeaderFault) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
    return FileHeader(text, frame.data_start, tensors, _version(info))


def _parse(text: bytes) -> dict[str, TensorInfo]:
    entries = json.loads(text)
    return {name: check_size(name, _info(name, entry)) for name, entry in entries.items() if name != METADATA}


def _info(name: str, entry: Any) -> TensorInfo:
    try:
        start, end = entry["data_offsets"]
        info = TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"])), int(start), int(end))
    except (KeyError, TypeError, OverflowError) as error:
        raise HeaderFault(f"tensor {name!r} is not described by dtype, shape and data_offsets") from error
    if info.dtype not in DTYPE_BITS:
        raise HeaderFault(f"tensor {name!r}: unknown dtype {info.dtype!r}")
    return info


class Tensors(Protocol):
    """The tensors of one module under the names in their files; `name` names the files in messages."""

    name: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """Return a copy of one tensor on the host."""

    def region(self, name: str, dtype: torch.dtype) -> Region | None:
        """Return the file region of a tensor's rows; None unless the file stores it in this dtype."""


class TensorFiles:
    """The tensors of one module, spread over one or more safetensors files.

    Attributes:
        headers: the header of each file.

    Raises:
        CheckpointError: a file cannot be read as safetensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = files[0].name if len(files) == 1 else f"{files[0].parent.name}/*.safetensors"
        # Parsed once: the loader, the regions and the checkpoint's revision share them.
        self.headers = {file: read_file_header(file) for file in files}
        self._stored = {
            name: (file, header, info) for file, header in self.headers.items() for name, info in header.tensors.items()
        }
        self.shapes = {name: info.shape for name, (_, _, info) in self._stored.items()}

    def read(self, name: str) -> Tensor:
        """Return a copy of one tensor on the host.

        Raises:
            CheckpointError: it is quantised, or the file cannot be read or has shrunk.
        """
        file, header, info = self._stored[name]
        dtype = _DTYPES.get(info.dtype) or (_OPTIONAL_DTYPES.get(info.dtype) if name in OPTIONAL else None)
        if dtype is None:
            # Quantised values are noise without their scales, which other tensors of the file hold.
            raise CheckpointError(
                f"{self.name}: tensor {name!r} holds {info.dtype} values; use a checkpoint in {sorted(_DTYPES)}"
            )
        # A copy, not mapped pages: those would change when someone rewrites the file.
        values = torch.empty(info.end - info.start, dtype=torch.uint8)
        try:
            with file.open("rb") as opened:
                opened.seek(header.data_start + info.start)
                count = opened.readinto(values.numpy().data)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if count < len(values):
            raise CheckpointError(f"{file}: ends in the middle of tensor {name!r}; download it again")
        return values.view(dtype).view(info.shape)

    def region(self, name: str, dtype: torch.dtype) -> Region | None:
        """See `Tensors.region`."""
        file, header, info = self._stored[name]
        if _DTYPES.get(info.dtype) != dtype:
            return None
        return Region(file, header.data_start + info.start, info.end - info.start)
