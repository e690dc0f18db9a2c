"""Edit the bytes of a safetensors file without a tensor library: `flux2 tiny` must not wait for torch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from shared.safetensors_header import LENGTH_BYTES, METADATA, read_frame, read_header_bytes

# As the safetensors library does, so that the data is aligned.
_ALIGNMENT = 8


def edit_tensors(
    content: bytes,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    replacements: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of a safetensors file with other tensors or metadata.

    Args:
        keep: whether the file keeps the tensor of this name.
        replacements: a safetensors file whose tensors replace those of the same name and shape.
        metadata: entries to add to the file's metadata, or to replace there.
    """
    entries, described = _parse(content)
    others = _parse(replacements)[0] if replacements else {}
    header: dict[str, Any] = {}
    if described or metadata:
        header[METADATA] = {**described, **(metadata or {})}
    data = bytearray()
    for name, (entry, original) in entries.items():
        if keep(name):
            tensor = others[name][1] if name in others else original
            header[name] = {**entry, "data_offsets": [len(data), len(data) + len(tensor)]}
            data += tensor
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + bytes(data)


def _parse(content: bytes) -> tuple[dict[str, tuple[dict[str, Any], bytes]], dict[str, str]]:
    """Return each tensor's entry and bytes, in the order of the data, and the metadata."""
    file = io.BytesIO(content)
    frame = read_frame(file, file_bytes=len(content))
    header = json.loads(read_header_bytes(file, frame))
    start = frame.data_start
    metadata = header.pop(METADATA, {})
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {
        name: (entry, content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]])
        for name, entry in ordered
    }, metadata
