"""Read a remote file as if it were open on this host: a seekable file over ranged requests."""

from __future__ import annotations

import math
import time
from typing import BinaryIO

from shared.errors import SourceUnavailable
from shared.seekable_file import SeekableFile
from shared.sources.remote_file import RemoteFile

# The header of a LoRA on every linear layer of FLUX.2 [dev] has 0.1 MB, so most headers take one request.
_FIRST_BYTES = 128 * 1024
# A longer header takes few requests, and less memory than its parser.
_MOST_BYTES = 4 * 1024**2


def open_remote(remote: RemoteFile, *, deadline: float = math.inf) -> BinaryIO:
    """Return a remote file as an open one; see `RangedReader`."""
    return RangedReader(remote, deadline=deadline).as_binary()


def check_deadline(name: str, deadline: float) -> None:
    """Raise `SourceUnavailable` if a time on the monotonic clock is over."""
    if time.monotonic() > deadline:
        raise SourceUnavailable(
            f"{name}: the hosts of the request's files take too long to answer; try again later, name fewer files, or "
            "upload them"
        )


class RangedReader(SeekableFile):
    """A remote file as an open one. One thread may use it.

    Reads that follow one another cost one request for a block of 128 kB, and later blocks are twice as large as the
    one before, up to 4 MB. After the deadline, a time on the monotonic clock, a read that needs a request raises
    `SourceUnavailable`.

    Attributes:
        fetched_bytes: number of bytes that were requested so far.
    """

    def __init__(self, remote: RemoteFile, *, deadline: float = math.inf) -> None:
        super().__init__(remote.name, file_bytes=remote.size_bytes)
        self._remote = remote
        self._deadline = deadline
        self._block_bytes = _FIRST_BYTES
        self._block_start = 0
        self._block = b""
        self.fetched_bytes = 0

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._file_bytes - self._position))
        done = 0
        # All that is wanted, although a raw file may return less: the header's reader asks once for each piece.
        while done < wanted:
            if not self._block_start <= self._position < self._block_start + len(self._block):
                self._fetch(wanted - done)
            found = self._block[self._position - self._block_start :][: wanted - done]
            buffer[done : done + len(found)] = found
            self._position += len(found)
            done += len(found)
        return done

    def _fetch(self, wanted: int) -> None:
        check_deadline(self._remote.name, self._deadline)
        end = min(self._file_bytes, self._position + max(wanted, self._block_bytes))
        self._block = self._remote.read(self._position, end)
        self._block_start = self._position
        self._block_bytes = min(2 * self._block_bytes, _MOST_BYTES)
        self.fetched_bytes += len(self._block)
