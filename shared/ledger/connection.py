"""The connection to Redis, and what its absence is called."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import LedgerUnavailable

#: Oldest Redis that has every command the scripts use; HRANDFIELD came with 6.2.
MIN_REDIS = (6, 2)

# A redis.Redis with decode_responses=True, whose replies redis-py types as bytes or str.
Client: TypeAlias = Any

# Errors that mean "not now": memory or disk is full, this is a replica, or a script holds the server. redis-py names
# some by class and leaves the word out of their text; the rest carry it, in a script's error behind a position.
_NOT_NOW_ERRORS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
_NOT_NOW = re.compile(r"\b(LOADING|OOM|MISCONF|READONLY|MASTERDOWN|CLUSTERDOWN|BUSY|NOREPLICAS)\b|used memory >")


def connect(url: str, *, timeout_s: float) -> Client:
    """Open a client that gives up after `timeout_s` a command and retries only a connection found dead."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s / 2,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn what redis-py raises when Redis is away into `LedgerUnavailable`; anything else passes."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise LedgerUnavailable(f"Redis did not answer: {error}") from error
    except redis.ResponseError as error:
        if isinstance(error, _NOT_NOW_ERRORS) or _NOT_NOW.search(str(error)):
            raise LedgerUnavailable(f"Redis cannot take writes now: {error}") from error
        raise


class Breaker:
    """Answers for a Redis that is known to be away, so that callers do not queue behind its timeouts.

    After a failure calls are refused at once for `pause_s`; then one is let through to look again.
    """

    def __init__(self, *, pause_s: float) -> None:
        self._pause_s = pause_s
        self._shut_until = 0.0
        self._reason = ""

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Run Redis calls; raises `LedgerUnavailable` as `mapped_errors` does, or instead of trying."""
        now = time.monotonic()
        if now < self._shut_until:
            raise LedgerUnavailable(self._reason)
        if self._reason:
            self._shut_until = now + self._pause_s
        try:
            with mapped_errors():
                yield
        except LedgerUnavailable as error:
            self._reason = str(error)
            self._shut_until = time.monotonic() + self._pause_s
            raise
        self._reason, self._shut_until = "", 0.0
