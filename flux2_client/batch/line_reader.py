"""Read the lines of a batch file one after the other: a file may be larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

#: No API takes longer bodies. Longer lines are skipped without being held.
MAX_LINE_BYTES: Final = 64 * 1024**2
_PIECE_BYTES: Final = 1024**2
# Some editors of Windows begin a file with it.
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawLine:
    """A line without its end.

    Attributes:
        number: from 1.
        is_whole: false for a line beyond `MAX_LINE_BYTES`, of which `data` has the beginning.
    """

    number: int
    data: bytes
    is_whole: bool = True


def read_lines(file: BinaryIO) -> Iterator[RawLine]:
    """Yield the lines that are not blank."""
    number = 0
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        is_whole = data.endswith(b"\n") or len(data) <= MAX_LINE_BYTES
        if not is_whole:
            _skip_line(file)
        text = (data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data).strip()
        if text:
            yield RawLine(number, text if is_whole else text[:_PIECE_BYTES], is_whole)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, blank ones too.

    Raises:
        OSError: the file cannot be read.
    """
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            count += piece.count(b"\n")
            last = piece[-1:]
    return count + (last != b"\n")


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(_PIECE_BYTES)) and not piece.endswith(b"\n"):
        pass
