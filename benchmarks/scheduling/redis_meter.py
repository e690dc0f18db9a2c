"""What calls of the ledger's scripts cost a Redis, by its own measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.ledger import lua
from shared.ledger.connection import Client

# The log holds the calls of one reading; each entry takes some 500 bytes.
_MOST_CALLS = 400_000
_SHORTEST_SCRIPT_US = 20


@dataclass
class Reading:
    """The costs of one `with` block.

    Attributes:
        cpu_s: processor time of Redis: scripts, connections and the append-only file.
        aof_bytes: growth of the append-only file.
        script_ms: duration of each call, by script.
    """

    cpu_s: float = 0.0
    aof_bytes: int = 0
    script_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)


@contextmanager
def measured(client: Client) -> Iterator[Reading]:
    """Measure what happens inside the block; the reading is complete after it."""
    client.config_set("slowlog-max-len", _MOST_CALLS)
    # A rewrite of the file would make it smaller.
    client.config_set("auto-aof-rewrite-percentage", 0)
    client.slowlog_reset()
    # Writing down each command of a script as well would slow the scripts down by a third.
    client.config_set("slowlog-log-slower-than", _SHORTEST_SCRIPT_US)
    reading, cpu_s, aof_bytes = Reading(), _cpu_s(client), _aof_bytes(client)
    try:
        yield reading
    finally:
        reading.cpu_s = _cpu_s(client) - cpu_s
        reading.aof_bytes = _aof_bytes(client) - aof_bytes
        client.config_set("slowlog-log-slower-than", -1)
        reading.script_ms = _script_ms(client)
        client.slowlog_reset()


def _cpu_s(client: Client) -> float:
    # Of Redis alone: other processes on this machine add nothing to it.
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _aof_bytes(client: Client) -> int:
    return int(client.info("persistence")["aof_current_size"])


def _script_ms(client: Client) -> dict[str, list[float]]:
    names = {hashlib.sha1(text.encode()).hexdigest(): name for name, text in lua.scripts().items()}
    calls: dict[str, list[float]] = {}
    for entry in client.slowlog_get(_MOST_CALLS):
        # Bytes, whatever the client decodes otherwise.
        command, *arguments = entry["command"].split(b" ", 2)
        if command == b"EVALSHA" and (name := names.get(arguments[0].decode())):
            calls.setdefault(name, []).append(entry["duration"] / 1000)
    return calls
