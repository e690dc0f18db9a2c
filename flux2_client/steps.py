"""The steps of a call: the protocol yields them, and a client performs them with or without `await`.

A generator of steps holds a call's whole logic. It receives the answer to each step, and a failed connection as an
exception, so that the synchronous and the asynchronous client differ only in how they perform one step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from flux2_client.file_body import FileBody
from flux2_client.receiver import Receiver

T = TypeVar("T")

#: Limit for each read and write of an upload: the API reads nothing while it stores a piece, and answers when the store
#: has put all pieces together.
UPLOAD_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class Call:
    """Send a request to the API; its answer is a response that has been read.

    Attributes:
        timeout_s: limit for each read and write; None is the client's.
    """

    method: str
    path: str
    body: bytes | FileBody | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None

    @property
    def sent_headers(self) -> dict[str, str]:
        """The headers with the size of a file, which would be sent in chunks of unknown number otherwise."""
        size = {"Content-Length": str(self.body.size_bytes)} if isinstance(self.body, FileBody) else {}
        return {**self.headers, **size}


@dataclass(frozen=True)
class Fetch:
    """GET an object; `receiver` gets a successful answer's body, piece by piece."""

    url: str
    headers: Mapping[str, str]
    receiver: Receiver


@dataclass(frozen=True)
class Pause:
    """Wait; it has no answer."""

    seconds: float


#: Performs `Step`s and returns a value of type T.
Steps: TypeAlias = Generator[Call | Fetch | Pause, Any, T]
