"""Name a checkpoint by its content, without reading all of it.

A revision is the first 16 hex digits of a sha256 over, for each file in the order of their names: role and file name,
size in bytes, and content. Content is the whole file for configurations and tokenizers. For safetensors it is the
header (every tensor's name, dtype, shape and offsets) and 64 blocks of 4 KiB spread evenly over the data, first and
last byte included. Files from the hub add `@` and 12 digits of the commit.

So copying or moving files keeps the revision; another training run, size or precision changes it. An edit of a few
values between the blocks can go unnoticed: the revision distinguishes checkpoints, it does not prove integrity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.safetensors_header import LENGTH_BYTES, read_frame, read_header_bytes
from worker.checkpoint.tensor_files import FileHeader

# Samples, because a worker cannot hash 99 GB each time it starts.
_BLOCKS = 64
_BLOCK_BYTES = 4096


def revision_of(
    files: Mapping[str, Path], *, commit: str | None, headers: Mapping[Path, FileHeader] | None = None
) -> str:
    """Return the revision of the files, by role and name.

    Args:
        headers: headers that have been read already, by file.
    """
    digest = hashlib.sha256()
    # By role and name, never by folder: a copied or moved checkpoint keeps its revision.
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        for block in _content(file, (headers or {}).get(file)):
            digest.update(block)
    return digest.hexdigest()[:16] + (f"@{commit[:12]}" if commit else "")


def _content(file: Path, header: FileHeader | None) -> Iterator[bytes]:
    if file.suffix != ".safetensors":
        yield file.read_bytes()
        return
    size = file.stat().st_size
    with file.open("rb") as opened:
        if header is None:
            frame = read_frame(opened, file_bytes=size)
            length, text = frame.start[:LENGTH_BYTES], read_header_bytes(opened, frame)
        else:
            length, text = len(header.text).to_bytes(LENGTH_BYTES, "little"), header.text
        yield length
        yield text
        data = len(length) + len(text)
        # The last block ends with the file.
        last = max(size - _BLOCK_BYTES, data)
        for index in range(_BLOCKS):
            opened.seek(data + (last - data) * index // (_BLOCKS - 1))
            yield opened.read(_BLOCK_BYTES)
