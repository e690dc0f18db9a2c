"""Read the alpha tensors of an adapter file: one number for each layer, without a tensor library."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from shared.adapters.header_json import Header
from shared.safetensors_header import read_frame

_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}


def read_alphas(file: BinaryIO, header: Header) -> dict[str, float]:
    """Return the values of the alpha tensors in an open file, by key; a value of another dtype is left out."""
    data_start = read_frame(file, file_bytes=os.fstat(file.fileno()).st_size).data_start
    alphas = {}
    for key, info in header.tensors.items():
        if key.endswith(".alpha") and info.shape in ((), (1,)):
            file.seek(data_start + info.start)
            value = _decode(file.read(info.end - info.start), info.dtype)
            if value is not None:
                alphas[key] = value
    return alphas


def _decode(raw: bytes, dtype: str) -> float | None:
    if dtype == "BF16":
        # The upper half of a float32.
        raw, dtype = bytes(2) + raw, "F32"
    layout = _FORMATS.get(dtype)
    return None if layout is None or len(raw) < struct.calcsize(layout) else float(struct.unpack(layout, raw)[0])
