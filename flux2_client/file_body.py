"""A file of this host as the body of a request: read in pieces, again for each attempt."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from shared.errors import RequestError, UploadRefused

_PIECE_BYTES = 1024 * 1024
# Larger than any file: the API's limit counts.
_ANY_SIZE = 2**63


@dataclass(frozen=True)
class FileBody:
    """A file whose size and sha256 are known.

    Attributes:
        on_progress: called with the number of bytes that were sent.
    """

    path: Path
    size_bytes: int
    sha256: str
    on_progress: Callable[[int], None] | None = None

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the file from its beginning; raises `UploadRefused` if it has changed or cannot be read."""
        done = 0
        with _naming_failures(self.path), self.path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                done += len(piece)
                if done > self.size_bytes:
                    break
                yield piece
                if self.on_progress is not None:
                    self.on_progress(done)
        if done != self.size_bytes:
            raise UploadRefused(f"{self.path} changed while it was sent; push it again when it is complete")

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """Yield the same as `pieces`, which is read in a thread."""
        pieces = self.pieces()
        try:
            while piece := await anyio.to_thread.run_sync(next, pieces, b""):
                yield piece
        finally:
            pieces.close()


def open_adapter_body(path: Path, *, on_progress: Callable[[int], None] | None = None) -> FileBody:
    """Read a file's size and sha256.

    Raises:
        UploadRefused: the file cannot be read, or would lose the config next to it, which decides its strength.
    """
    with _naming_failures(path):
        _check_config(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    return FileBody(path, size_bytes, sha256, on_progress)


def _check_config(path: Path) -> None:
    # Only this check needs them, and a client should not wait for Redis' library.
    from shared.adapters.header import read_header
    from shared.adapters.layout import parse_layout
    from shared.adapters.peft_folder import read_peft_config
    from shared.adapters.strength import CONFIG_NAME
    from shared.adapters.validate import deciding_config
    from shared.job import ADAPTER_PARTS

    try:
        config = read_peft_config(path)
        if config is None:
            return
        layout = parse_layout(read_header(path, max_bytes=_ANY_SIZE), config=config, ignore=ADAPTER_PARTS)
        decides = bool(deciding_config(layout, config))
    except RequestError as error:
        raise UploadRefused(f"{path}: {error}") from error
    if decides:
        raise UploadRefused(
            f"{CONFIG_NAME} next to {path} decides the adapter's strength, and an upload is one file; make one of both "
            f"with `flux2 convert {path} FILE --to ai-toolkit`, and push that"
        )


@contextmanager
def _naming_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UploadRefused(f"{path} cannot be read: {error.strerror or error}; name a .safetensors file") from error
