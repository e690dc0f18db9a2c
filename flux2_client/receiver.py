"""Receive an object in pieces, and check its size and its sha256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx2

from flux2_client.part_file import open_part
from shared.errors import OutputRefused

_BLOCK_BYTES = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


class Receiver:
    """Writes an object into a file that may already hold its beginning.

    Args:
        size_bytes, sha256: what the object must have; None and "" check nothing.
    """

    def __init__(self, file: BinaryIO, *, size_bytes: int | None = None, sha256: str = "") -> None:
        self._file = file
        self._expected_bytes = size_bytes
        self._expected_sha256 = sha256
        self._digest = hashlib.sha256()
        self._resumed = False
        #: Bytes that have arrived; the next request asks for the rest.
        self.size_bytes = 0
        file.seek(0)
        while block := file.read(_BLOCK_BYTES):
            self._digest.update(block)
            self.size_bytes += len(block)

    def begin(self, answer: httpx2.Response) -> None:
        """Prepare for the body of an answer, which is the whole object or the range that follows what is there."""
        match = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
        is_rest = answer.status_code == HTTPStatus.PARTIAL_CONTENT and match and int(match[1]) == self.size_bytes
        if not is_rest:
            # A store may ignore `Range`; another range than the one asked for fails the check at the end.
            self.restart()
        self._resumed = bool(is_rest) and self.size_bytes > 0

    def write(self, piece: bytes) -> bool:
        """Append a piece of the body; return False if the body is longer than the object may be."""
        if self._expected_bytes is not None and self.size_bytes + len(piece) > self._expected_bytes:
            self.size_bytes += len(piece)
            return False
        self._file.write(piece)
        self._digest.update(piece)
        self.size_bytes += len(piece)
        return True

    def restart(self) -> None:
        """Drop all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._resumed = False
        self.size_bytes = 0

    @property
    def checks_object(self) -> bool:
        """Whether size and sha256 of the object are known."""
        return self._expected_bytes is not None and bool(self._expected_sha256)

    @property
    def is_complete(self) -> bool:
        """Whether the whole object is there already, so that no request is needed."""
        return bool(self._expected_sha256) and self.find_fault() is None

    @property
    def resumed(self) -> bool:
        """Whether a part of the bytes comes from an earlier request, so that a fault may be that part's."""
        return self._resumed

    def find_fault(self) -> str | None:
        """Return how the received bytes differ from the object, or None if they are the object."""
        if self._expected_bytes is not None and self.size_bytes != self._expected_bytes:
            more = "more" if self.size_bytes > self._expected_bytes else "fewer"
            return f"the object has {more} bytes than the {self._expected_bytes} of the image"
        if self._expected_sha256 and self._digest.hexdigest() != self._expected_sha256:
            return f"the bytes have another sha256 than the image, {self._expected_sha256}"
        return None


@contextmanager
def receive_into(path: Path, *, size_bytes: int | None, sha256: str) -> Iterator[Receiver]:
    """Receive into `path` with the suffix `.part`; at the end of the block the file gets its name.

    If the block raises, the `.part` file stays, and the next call goes on from there.

    Raises:
        OutputRefused: a file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_part(path) as file:
            yield Receiver(file, size_bytes=size_bytes, sha256=sha256)
    except OSError as error:
        raise OutputRefused(f"cannot write {path}: {error.strerror}; choose another folder or name") from error


def holds_object(path: Path, *, size_bytes: int, sha256: str) -> bool:
    """Return whether a file has this size and this sha256."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
