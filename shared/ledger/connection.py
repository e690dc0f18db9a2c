"""Connect to Redis, recognise its errors that mean "not now", and break the circuit during outages."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import LedgerForbidden, LedgerRefused, LedgerUnavailable, LedgerUnusable
from shared.ledger import keys
from shared.metrics.definitions import REDIS_ERRORS
from shared.metrics.tally import PROCESS
from shared.redis_url import RedisUrl

#: Oldest Redis that has every command the scripts use; HRANDFIELD came with 6.2.
MIN_REDIS = (6, 2)

#: What to do about `LedgerForbidden`.
ACL_REMEDY = "allow it with ACL SETUSER, as docs/operations.md describes"

# Why a Redis in cluster mode is refused, and what to do about it.
_IN_CLUSTER = (
    "Redis runs in cluster mode, which spreads keys over nodes, and the service needs all of its keys on one; "
    "set FLUX2_REDIS_URL to a Redis with `cluster-enabled no`"
)

# A redis.Redis with decode_responses=True. redis-py's types allow bytes in replies even with that flag.
Client: TypeAlias = Any

# Errors that mean "not now": memory or disk is full, this is a replica, or a script blocks the server. redis-py has a
# class for some of them and drops the error's word from their text. The text of the others contains the word; in the
# error of a script it follows the position in the script.
_NOT_NOW_ERRORS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
)
_NOT_NOW = re.compile(r"\b(LOADING|OOM|MISCONF|READONLY|MASTERDOWN|BUSY|NOREPLICAS)\b|used memory >")

# Only a node of a cluster answers so. A master that is down, whose class redis-py derives from the first, is matched
# before these.
_CLUSTER_ERRORS = (
    redis.exceptions.ClusterDownError,
    redis.exceptions.ClusterCrossSlotError,
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
)

# The words of other refusals that only a change of the set-up ends, and what is wrong and what to do. None quotes
# Redis: after these words come a page of advice, or the arguments of a call, which may hold a prompt.
_UNUSABLE = {
    "running in protected mode": (
        "Redis runs in protected mode, in which it serves no other host as long as it has no password; set "
        "`requirepass` in redis.conf, and write the password into FLUX2_REDIS_URL"
    ),
    "DB index": (
        "Redis has no database of the number in FLUX2_REDIS_URL; write a smaller one, or raise `databases` in "
        "redis.conf"
    ),
}

# A Sentinel, or a Redis that is too old or renames commands. In a script, the error names no command.
_UNKNOWN_COMMAND = re.compile(r"[Uu]nknown (?:Redis )?command(?: ['`](\w+)['`])?")

# Redis' ACL refuses a command or a key of this user. In the error of a script, Redis 6.2 has the second text and later
# versions have the third.
_FORBIDDEN = re.compile(r"[Nn]o permissions to|user executing the script can't|ACL failure in script")

_PLACE_IN_SCRIPT = re.compile(r"^.*@user_script: ?\d+: ")


def connect(url: RedisUrl | str, *, timeout_s: float) -> Client:
    """Open a client that waits at most `timeout_s` for a command."""
    parsed = RedisUrl.parse(url)
    options = parsed.client_options()
    if not parsed.is_unix_socket:
        options |= {"socket_connect_timeout": timeout_s / 2, "socket_keepalive": True}
    pool = redis.ConnectionPool(
        **options,
        decode_responses=True,
        socket_timeout=timeout_s,
        health_check_interval=15,
        redis_connect_func=_log_in,
        # One retry, at once: a pooled connection may have died while nobody used it.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    return redis.Redis.from_pool(pool)


def _log_in(connection: Any) -> None:
    """Do what redis-py does on a new connection, and raise an error if this is a node of a cluster, or a Sentinel."""
    # A new connection needs no check of its health, which would connect again if Redis refuses the login. Each answer
    # sets the time of the next one.
    connection.next_health_check = math.inf
    connection.on_connect()
    # Two keys of different slots, read so that a replica passes. A cluster of one node would accept jobs and only lose
    # their wake-ups, and Redis may be away when a process starts, so each connection is checked.
    connection.send_command("EXISTS", *keys.SLOT_PROBES)
    try:
        connection.read_response()
    except _CLUSTER_ERRORS:
        raise
    except redis.ResponseError as error:
        if find_unknown_command(error):
            raise
        # An ACL, for example. Whoever needs the connection meets the error again, and reports it.
        return


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raise `LedgerUnavailable` if Redis does not answer, or one of its kinds if it refuses; keep other errors."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise LedgerUnavailable(f"Redis refuses the login of FLUX2_REDIS_URL: {error}") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise LedgerUnavailable(f"Redis did not answer: {error}") from error
    except redis.ResponseError as error:
        raise_if_forbidden(error)
        if isinstance(error, _NOT_NOW_ERRORS) or _NOT_NOW.search(str(error)):
            raise LedgerRefused(f"Redis cannot take writes now: {error}") from error
        raise_if_unusable(error)
        raise
    except redis.InvalidResponse as error:
        raise LedgerUnusable(
            f"the server at FLUX2_REDIS_URL is not Redis ({error}); correct the host and the port"
        ) from error


def is_forbidden(error: Exception) -> bool:
    """Return whether an error of Redis, or one that quotes it, says that the ACL refuses a call."""
    return _FORBIDDEN.search(str(error)) is not None


def raise_if_forbidden(error: Exception) -> None:
    """Raise `LedgerForbidden` if `is_forbidden`."""
    if is_forbidden(error):
        reason = _PLACE_IN_SCRIPT.sub("", str(error))
        raise LedgerForbidden(f"Redis refuses this user: {reason}; {ACL_REMEDY}") from error


def raise_if_unusable(error: redis.ResponseError) -> None:
    """Raise `LedgerUnusable` if an error says that this Redis cannot hold the ledger as it is set up."""
    if isinstance(error, _CLUSTER_ERRORS):
        raise LedgerUnusable(_IN_CLUSTER) from error
    text = str(error)
    for words, reason in _UNUSABLE.items():
        if words in text:
            raise LedgerUnusable(reason) from error
    if unknown := find_unknown_command(error):
        raise LedgerUnusable(describe_unknown_commands([unknown])) from error


def find_unknown_command(error: redis.ResponseError) -> str | None:
    """Return the command that the server does not know, if that is what an error says."""
    found = _UNKNOWN_COMMAND.search(str(error))
    return None if found is None else (found[1] or "one of a script").upper()


def describe_unknown_commands(names: Sequence[str]) -> str:
    required = ".".join(str(part) for part in MIN_REDIS)
    return (
        f"the server at FLUX2_REDIS_URL does not know {', '.join(names)}; set it to a Redis {required} or later, or a "
        "Valkey, that is not a Sentinel and whose commands have their own names"
    )


class Breaker:
    """Refuses calls to a Redis that failed to answer a moment ago.

    After a failure, calls are refused immediately for `pause_s`; then one call may try again.
    """

    def __init__(self, *, pause_s: float) -> None:
        # Without a pause, callers would queue up for the timeouts of an absent Redis.
        self._pause_s = pause_s
        self._open_until = 0.0
        self._reason = ""

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Run Redis calls in this context.

        Raises:
            LedgerUnavailable: see `mapped_errors`; also raised during the pause, without a call.
        """
        now = time.monotonic()
        if now < self._open_until:
            raise LedgerUnavailable(self._reason)
        # While one call tries again, all others are refused.
        if self._reason:
            self._open_until = now + self._pause_s
        try:
            with mapped_errors():
                yield
        except LedgerRefused:
            # Redis answered, so no call waits for a timeout, and others may succeed: a full Redis still serves reads.
            self._reason, self._open_until = "", 0.0
            PROCESS.count(REDIS_ERRORS, "refused")
            raise
        except LedgerUnavailable as error:
            self._reason = str(error)
            self._open_until = time.monotonic() + self._pause_s
            PROCESS.count(REDIS_ERRORS, "unanswered")
            raise
        self._reason, self._open_until = "", 0.0
