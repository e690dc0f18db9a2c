"""Check that Redis' ACL lets this user run every command of the service, without running any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis

from shared.errors import LedgerForbidden, LedgerUnusable
from shared.ledger import keys
from shared.ledger.connection import (
    ACL_REMEDY,
    Client,
    describe_unknown_commands,
    find_unknown_command,
    is_forbidden,
)

_KEY: Final = keys.WRITE_PROBE
# Of a refusal that is about a command and not about a key. The name of a command, and of a user, may hold "key".
_FORBIDDEN_COMMAND: Final = "permissions to run the"

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
    """Check every command of the service, and its keys, without running any; a Redis that takes no writes passes.

    Raises:
        LedgerForbidden: this user of Redis may not run some commands, all of which the message names, or not with the
            service's keys.
        LedgerUnusable: the server does not know some commands; the message names them.
    """
    with client.client() as single:
        refusals = _find_refusals(single.connection)
    unknown = sorted({name.upper() for name, error in refusals if find_unknown_command(error)})
    if unknown:
        raise LedgerUnusable(describe_unknown_commands(unknown))
    forbidden = [(name, str(error)) for name, error in refusals if is_forbidden(error)]
    names = sorted({f"'{name}'" for name, reason in forbidden if _FORBIDDEN_COMMAND in reason})
    if names:
        raise LedgerForbidden(f"Redis refuses this user: it may not run {', '.join(names)}; {ACL_REMEDY}")
    if forbidden:
        raise LedgerForbidden(f"Redis refuses this user: it may not use the keys {keys.PREFIX}*; {ACL_REMEDY}")
    # All other errors are about the arguments, or the state that Redis is in.


def _find_refusals(connection: Any) -> list[tuple[str, redis.ResponseError]]:
    """Return each command that Redis answers with an error, in lower case, with the error."""
    # An empty transaction is the only one that runs.
    opening = _ask(connection, (("MULTI",), ("EXEC",), ("MULTI",), ("DISCARD",)))
    if not opening:
        return _ask(connection, (("MULTI",), *COMMANDS, ("DISCARD",)))
    # Outside of a transaction, the commands would be performed. Redis forgets an open one with its connection.
    connection.disconnect()
    explained = [(name, error) for name, error in opening if is_forbidden(error) or find_unknown_command(error)]
    if not explained:
        raise opening[0][1]
    return explained


def _ask(connection: Any, commands: Sequence[tuple[str, ...]]) -> list[tuple[str, redis.ResponseError]]:
    # All at once: `/ready` asks too, and each round trip delays its answer.
    connection.send_packed_command(connection.pack_commands(commands))
    refusals = []
    for command in commands:
        try:
            connection.read_response()
        except redis.ResponseError as error:
            refusals.append((command[0].lower(), error))
    return refusals
