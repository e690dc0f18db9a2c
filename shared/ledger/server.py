"""Read which server and version answers as Redis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from shared.ledger.connection import MIN_REDIS, Client

_NAMES = {"redis": "Redis", "valkey": "Valkey"}


@dataclass(frozen=True)
class Server:
    """The program that answers; as text, for example `Valkey 8.0.1`.

    Attributes:
        version: empty if the server does not say it.
    """

    name: str
    version: str

    @property
    def is_too_old(self) -> bool:
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return numbers is not None and (int(numbers[1]), int(numbers[2])) < MIN_REDIS

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'of an unknown version'}"


def read_server(client: Client) -> Server:
    """Ask the server for its name and version."""
    try:
        # Every user may call it, unlike INFO. Before 6.2 it needs an argument, and proxies may not know it.
        return _describe(client.execute_command("HELLO"))
    except (redis.ResponseError, KeyError):
        pass
    try:
        return Server("Redis", str(client.info("server")["redis_version"]))
    except (redis.ResponseError, KeyError):
        return Server("Redis", "")


def _describe(reply: Any) -> Server:
    # A list of names and values with the second version of the protocol, a map with the third.
    about = reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))
    name = str(about["server"])
    return Server(_NAMES.get(name, name), str(about["version"]))
