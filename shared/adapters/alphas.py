"""Read the alpha tensors of an adapter file: one number for each layer, without a tensor library."""

from __future__ import annotations

import math
import os
import struct
from typing import BinaryIO

from shared.adapters.header_json import Header
from shared.safetensors_header import read_frame

_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}
# FLUX.2 [dev] has 171 linear layers, some of which OneTrainer splits into four; more fit no base.
_MAX_ALPHAS = 4096


def read_alphas(file: BinaryIO, header: Header) -> dict[str, float]:
    """Return the values of the alpha tensors in an open file, by key; of each, only its own bytes are read.

    A file with more than `_MAX_ALPHAS` gives none, and a value of another dtype is left out.
    """
    scalars = {key: info for key, info in header.tensors.items() if key.endswith(".alpha") and info.shape in ((), (1,))}
    if len(scalars) > _MAX_ALPHAS:
        return {}
    data_start = read_frame(file, file_bytes=os.fstat(file.fileno()).st_size).data_start
    alphas = {}
    for key, info in scalars.items():
        file.seek(data_start + info.start)
        value = _decode(file.read(info.end - info.start), info.dtype)
        if value is not None:
            alphas[key] = value
    return alphas


def _decode(raw: bytes, dtype: str) -> float | None:
    if dtype == "BF16":
        # The upper half of a float32.
        raw, dtype = bytes(2) + raw, "F32"
    if dtype == "F8_E5M2":
        # The upper half of a float16.
        raw, dtype = bytes(1) + raw, "F16"
    if dtype == "F8_E4M3" and raw:
        return _decode_e4m3(raw[0])
    layout = _FORMATS.get(dtype)
    return None if layout is None or len(raw) < struct.calcsize(layout) else float(struct.unpack(layout, raw)[0])


def _decode_e4m3(byte: int) -> float:
    """Return the value of a float8 with four bits of exponent, which has a NaN but no infinity.

    Source:
        Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1, https://arxiv.org/abs/2209.05433
    """
    sign, exponent, mantissa = -1 if byte & 0x80 else 1, byte >> 3 & 0xF, byte & 0x7
    if byte & 0x7F == 0x7F:
        return math.nan
    return sign * math.ldexp(mantissa + 8 * (exponent > 0), max(exponent, 1) - 10)
