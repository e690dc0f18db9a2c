"""Send many small reads to Redis in a few round trips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from shared.ledger.connection import Client

T = TypeVar("T")

# Redis serves nobody else while it answers one command, but others between two round trips.
_COMMANDS_AT_ONCE = 200


def read_each(client: Client, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the reply to each command, which is the name of a method of the client and its arguments."""
    replies: list[Any] = []
    for part in in_parts(list(commands)):
        with client.pipeline(transaction=False) as pipe:
            for name, *arguments in part:
                getattr(pipe, name)(*arguments)
            replies += pipe.execute()
    return replies


def in_parts(values: Sequence[T], size: int = _COMMANDS_AT_ONCE) -> Iterator[Sequence[T]]:
    """Split values into parts for which one round trip is enough."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
