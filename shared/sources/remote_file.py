"""What every source of files offers: one open file whose size and identity are known, read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self, cast, get_args

PinKind = Literal["commit", "version", "etag", "sha256"]

_KINDS: Final = get_args(PinKind)

#: Bytes of the largest chunk that `RemoteFile.stream` yields.
MAX_CHUNK: Final = 1024**2


@dataclass(frozen=True)
class Pin:
    """What makes a later read give the same bytes, or fail.

    Attributes:
        kind: `commit` of a repository, `version` of an object, a strong `etag` with its quotes, or the `sha256` that
            the caller stated.
    """

    kind: PinKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a pin as `str` writes it.

        Raises:
            ValueError: the text is no pin.
        """
        kind, colon, value = text.partition(":")
        if kind not in _KINDS or not colon or not value:
            raise ValueError(f"{text!r} is not a pin; it has the form KIND:VALUE with one of {', '.join(_KINDS)}")
        return cls(cast(PinKind, kind), value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


class RemoteFile(Protocol):
    """One open file of a source; several threads may read it."""

    @property
    def name(self) -> str:
        """The canonical text of the source, for messages; it holds no secret."""
        ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> str | None:
        """The file's digest as the source states it, in lower-case hexadecimal; None if it states none."""
        ...

    @property
    def pin(self) -> Pin: ...

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, not including, `end`.

        Raises:
            SourceChanged: the file is no longer the one of the pin.
            SourceUnavailable: the source did not answer in time, or asks to come back later.
            AdapterNotFound: the file is gone.
            AdapterRefused: the source gave something else than those bytes.
        """
        ...

    def stream(self, start: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to the end of the file, in chunks of at most `MAX_CHUNK`.

        Raises:
            SourceChanged, SourceUnavailable, AdapterNotFound, AdapterRefused: as in `read`. What was yielded before is
                sound.
        """
        ...
