"""Name a checkpoint by its content, cheaply: 99 GB cannot be hashed at every start of a worker.

A revision is the first 16 hex digits of a sha256 over, for each file in the order of their names: role and file name,
size in bytes, and content. Content is the whole file for configurations and tokenizers; for safetensors it is the
header (every tensor's name, dtype, shape and place) and 64 blocks of 4 KiB spread evenly over the data, first and last
byte included. Where the files came from the hub, `@` and 12 digits of the commit follow.

So copying or moving files keeps the revision, and another training run, size or precision changes it. An edit of a few
values between the blocks can go unnoticed: the revision tells checkpoints apart, it does not prove integrity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

_BLOCKS = 64
_BLOCK_BYTES = 4096


def revision_of(files: Mapping[str, Path], *, commit: str | None) -> str:
    """Return the revision of the files, by role and name."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        for block in _content(file):
            digest.update(block)
    return digest.hexdigest()[:16] + (f"@{commit[:12]}" if commit else "")


def _content(file: Path) -> list[bytes]:
    if file.suffix != ".safetensors":
        return [file.read_bytes()]
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        blocks = [start, handle.read(int.from_bytes(start, "little"))]
        data = handle.tell()
        last = max(size - _BLOCK_BYTES, data)
        for index in range(_BLOCKS):
            handle.seek(data + (last - data) * index // (_BLOCKS - 1))
            blocks.append(handle.read(_BLOCK_BYTES))
    return blocks
