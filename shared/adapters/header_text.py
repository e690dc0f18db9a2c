"""Read the text of a safetensors header in pieces, so that a header of any size takes little memory."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

from shared.errors import HeaderFault
from shared.safetensors_header import LENGTH_BYTES, HeaderFrame

# A match over one piece takes under 1 ms. Other threads run between two pieces.
_PIECE_BYTES = 64 * 1024

_SPACE = re.compile(r"[ \t\n\r]*+")


class HeaderText:
    """A window of a header's text, which moves forward as the parser consumes it.

    Args:
        frame: the frame of the open file; it is plausible.

    Attributes:
        window: the text that has been read and not dropped.
        at: index in `window` of the next character to consume.
    """

    def __init__(self, file: BinaryIO, frame: HeaderFrame) -> None:
        self.window = ""
        self.at = 0
        self._file = file
        self._left = frame.header_bytes
        self._read = 0
        self._dropped = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        file.seek(LENGTH_BYTES)

    @property
    def position(self) -> int:
        """Number of characters of the header before the next one."""
        return self._dropped + self.at

    def look_ahead(self, count: int) -> None:
        """Make at least `count` characters available from `at`, or all that the header has.

        Raises:
            HeaderFault: the next bytes are not UTF-8, or the file has shrunk since its frame was read.
        """
        while self._left and len(self.window) - self.at < count:
            self._read_piece()

    def skip_space(self) -> None:
        """Consume white space; see `look_ahead` for the errors."""
        while True:
            self.look_ahead(1)
            match = _SPACE.match(self.window, self.at)
            if match is None or match.end() == self.at:
                return
            self.at = match.end()

    def _read_piece(self) -> None:
        raw = self._file.read(min(self._left, _PIECE_BYTES))
        if not raw:
            raise HeaderFault("the file shrank while it was read; submit again when it is complete")
        # A character may begin in one piece and end in the next.
        waiting = len(self._decoder.getstate()[0])
        self._left -= len(raw)
        try:
            text = self._decoder.decode(raw, final=not self._left)
        except UnicodeDecodeError as error:
            where = LENGTH_BYTES + self._read - waiting + error.start
            raise HeaderFault(f"the header is not UTF-8 at byte {where}") from error
        self._read += len(raw)
        self._dropped += self.at
        self.window = self.window[self.at :] + text
        self.at = 0
