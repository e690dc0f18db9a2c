"""Check that Redis' ACL lets this user run every command of the service, without running any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis

from shared.errors import LedgerForbidden
from shared.ledger import keys
from shared.ledger.connection import ACL_REMEDY, Client, is_forbidden

_KEY: Final = keys.WRITE_PROBE

#: Each command of the ledger's scripts, of its other calls and of Celery, with arguments of the right number. They are
#: only queued, in a transaction that is discarded, so the arguments need no meaning.
COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    ("PING",),
    ("TIME",),
    ("EVALSHA", "sha", "0"),
    ("SCRIPT", "LOAD", ""),
    ("UNWATCH",),
    ("WATCH", _KEY),
    # Any kind of key.
    ("DEL", _KEY),
    ("EXISTS", *keys.SLOT_PROBES),
    ("EXPIRE", _KEY, "1"),
    ("PEXPIRE", _KEY, "1"),
    # Texts and numbers.
    ("GET", _KEY),
    ("INCR", _KEY),
    ("SET", _KEY, ""),
    # Hashes.
    ("HDEL", _KEY, ""),
    ("HEXISTS", _KEY, ""),
    ("HGET", _KEY, ""),
    ("HGETALL", _KEY),
    ("HINCRBY", _KEY, "", "1"),
    ("HKEYS", _KEY),
    ("HLEN", _KEY),
    ("HMGET", _KEY, ""),
    ("HRANDFIELD", _KEY),
    ("HSET", _KEY, "", ""),
    ("HSETNX", _KEY, "", ""),
    # Lists.
    ("BRPOP", _KEY, "1"),
    ("LINDEX", _KEY, "0"),
    ("LLEN", _KEY),
    ("LPOS", _KEY, ""),
    ("LPUSH", _KEY, ""),
    ("LPUSHX", _KEY, ""),
    ("LRANGE", _KEY, "0", "0"),
    ("LSET", _KEY, "0", ""),
    ("LTRIM", _KEY, "0", "0"),
    ("RPOP", _KEY),
    ("RPUSH", _KEY, ""),
    # Sets.
    ("SADD", _KEY, ""),
    ("SMEMBERS", _KEY),
    ("SREM", _KEY, ""),
    # Sorted sets.
    ("ZADD", _KEY, "1", ""),
    ("ZCARD", _KEY),
    ("ZCOUNT", _KEY, "0", "0"),
    ("ZLEXCOUNT", _KEY, "-", "+"),
    ("ZPOPMIN", _KEY),
    ("ZRANDMEMBER", _KEY),
    ("ZRANGE", _KEY, "0", "0"),
    ("ZRANGEBYLEX", _KEY, "-", "+"),
    ("ZRANGEBYSCORE", _KEY, "0", "0"),
    ("ZRANK", _KEY, ""),
    ("ZREM", _KEY, ""),
    ("ZREMRANGEBYSCORE", _KEY, "0", "0"),
    ("ZREVRANGEBYSCORE", _KEY, "0", "0"),
    ("ZSCAN", _KEY, "0"),
    ("ZSCORE", _KEY, ""),
)


def check_permissions(client: Client) -> None:
    """Raise `LedgerForbidden` if this user of Redis may not run some command of the service, or not with its keys.

    The message names all of them. Nothing is written, and a Redis that takes no writes is checked too.
    """
    with client.client() as single:
        refused = _find_refused(single.connection)
    commands = sorted({name for name, reason in refused if "key" not in reason})
    if commands:
        names = ", ".join(f"'{name}'" for name in commands)
        raise LedgerForbidden(f"Redis refuses this user: it may not run {names}; {ACL_REMEDY}")
    if refused:
        raise LedgerForbidden(f"Redis refuses this user: it may not use the keys {keys.PREFIX}*; {ACL_REMEDY}")


def _find_refused(connection: Any) -> list[tuple[str, str]]:
    """Return each refused command, in lower case, with the words of Redis."""
    # An empty transaction is the only one that runs.
    opening = _ask(connection, (("MULTI",), ("EXEC",), ("MULTI",), ("DISCARD",)))
    if opening:
        # Outside of a transaction, the commands would be performed. Redis forgets an open one with its connection.
        connection.disconnect()
        return opening
    return _ask(connection, (("MULTI",), *COMMANDS, ("DISCARD",)))


def _ask(connection: Any, commands: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    # All at once: `/ready` asks too, and each round trip delays its answer.
    connection.send_packed_command(connection.pack_commands(commands))
    refused = []
    for command in commands:
        try:
            connection.read_response()
        except redis.ResponseError as error:
            # All other errors are about the arguments, or the state that Redis is in.
            if is_forbidden(error):
                refused.append((command[0].lower(), str(error).lower()))
    return refused
