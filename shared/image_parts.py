"""Refuse image files of so many small parts that reading them would take long.

Pillow reads the chunks of a PNG and the segments of a JPEG one by one in Python: 32 MiB of empty ones take it up to
23 s, in which the other threads of its process hardly run, and up to 1 GB.
"""

from __future__ import annotations

from typing import Final

from PIL.JpegImagePlugin import MARKER

from shared.errors import ReferenceRefused

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
# The longest profiles and descriptions take a few hundred parts.
_MAX_PARTS: Final = 1000
# Pixels come in chunks of 8 KiB and more. The average counts, because the last one of each image is short.
_MIN_PIXEL_CHUNK_BYTES: Final = 256
_PIXELS: Final = frozenset({b"IDAT", b"fdAT"})
# Bytes between the segments of a JPEG, which Pillow skips one by one.
_MAX_FILL_BYTES: Final = 100_000
_SCAN: Final = 0xFFDA


def check_parts(data: bytes) -> None:
    """Raise `ReferenceRefused` for a PNG or a JPEG of too many parts; other data passes."""
    if data.startswith(_PNG):
        _check_png(data)
    elif data.startswith(_JPEG):
        _check_jpeg(data)


def _check_png(data: bytes) -> None:
    at, others, pixels = len(_PNG), 0, 0
    most_pixels = _MAX_PARTS + len(data) // _MIN_PIXEL_CHUNK_BYTES
    while (name := data[at + 4 : at + 8]) and name != b"IEND":
        if name in _PIXELS:
            pixels += 1
        else:
            others += 1
        if others > _MAX_PARTS or pixels > most_pixels:
            raise _refusal("PNG", "chunks")
        # Length, name and checksum take 12 bytes.
        at += 12 + int.from_bytes(data[at : at + 4])


def _check_jpeg(data: bytes) -> None:
    # As Pillow searches for the first scan; what follows is read by libjpeg.
    at, segments, fill = 2, 0, 0
    while len(word := data[at : at + 2]) == 2:
        marker = int.from_bytes(word)
        if marker == _SCAN:
            return
        if word[0] != 0xFF or word[1] in (0, 0xFF):
            following = data.find(b"\xff", at + 1)
            skipped = (len(data) if following < 0 else following) - at
            at, fill = at + skipped, fill + skipped
        else:
            segments += 1
            at += 2
            # Some markers stand alone.
            if MARKER.get(marker, ("", "", None))[2] is not None:
                at += int.from_bytes(data[at : at + 2])
        if segments > _MAX_PARTS or fill > _MAX_FILL_BYTES:
            raise _refusal("JPEG", "segments before its pixels")


def _refusal(kind: str, parts: str) -> ReferenceRefused:
    return ReferenceRefused(
        f"the {kind} has too many {parts}, which would take too long to read; save it again without its metadata"
    )
