"""Check whether a Redis keeps the writes that it acknowledged: the promise of a 202 depends on three settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from shared.ledger.connection import Client, is_forbidden

# Share of `maxmemory` above which a Redis counts as nearly full.
_NEARLY_FULL = 0.9


_UNKNOWN = "whether Redis keeps accepted jobs cannot be read here: {} is not allowed or not there"
_ASK = (
    "allow it with ACL SETUSER, as docs/operations.md describes, or ask whoever runs Redis: it needs `appendonly yes`, "
    "`appendfsync always` and `maxmemory-policy noeviction`"
)


@dataclass(frozen=True)
class DurabilityIssue:
    """A way in which this Redis may lose jobs, and what to do about it.

    Attributes:
        is_certain: False if Redis does not let this user find out.
    """

    detail: str
    remedy: str
    is_certain: bool = True


def find_issues(client: Client) -> list[DurabilityIssue]:
    """Return the ways in which this Redis may lose jobs; one that this user cannot find out about counts too."""
    # INFO is one round trip and allowed almost everywhere; only appendfsync needs CONFIG.
    try:
        info = client.info("everything")
    except redis.ResponseError as error:
        if not is_forbidden(error):
            raise
        return [DurabilityIssue(_UNKNOWN.format("INFO"), _ASK, is_certain=False)]
    return [*_persistence(info, _fsync(client)), *_memory(info), *_role(info)]


def _fsync(client: Client) -> str | None:
    try:
        return str(client.config_get("appendfsync")["appendfsync"])
    except (redis.ResponseError, KeyError):
        return None


def _persistence(info: Mapping[str, Any], fsync: str | None) -> Iterator[DurabilityIssue]:
    enabled = info.get("aof_enabled")
    if enabled is None:
        yield DurabilityIssue(_UNKNOWN.format("that part of INFO"), _ASK, is_certain=False)
    elif not enabled:
        yield DurabilityIssue(
            "appendonly is no: a restart of Redis loses every job", "CONFIG SET appendonly yes, and in redis.conf"
        )
    elif fsync is None:
        yield DurabilityIssue(_UNKNOWN.format("CONFIG"), _ASK, is_certain=False)
    elif fsync != "always":
        yield DurabilityIssue(
            f"appendfsync is {fsync}: a crash of its host loses accepted jobs",
            "CONFIG SET appendfsync always, and in redis.conf",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        yield DurabilityIssue(
            "the last write of the append-only file failed", "check the disk of Redis: is it full or broken?"
        )


def _memory(info: Mapping[str, Any]) -> Iterator[DurabilityIssue]:
    # Any other policy lets Redis delete keys of the ledger to make room.
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield DurabilityIssue(
            f"maxmemory-policy is {policy}: a full Redis deletes jobs",
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        )
    limit = info.get("maxmemory")
    if limit and info["used_memory"] > _NEARLY_FULL * limit:
        yield DurabilityIssue(
            f"{info['used_memory']:,} of {limit:,} bytes are used: Redis is nearly full",
            "raise maxmemory, or lower FLUX2_QUEUE_RETENTION_S",
        )


def _role(info: Mapping[str, Any]) -> Iterator[DurabilityIssue]:
    role = info.get("role", "master")
    if role != "master":
        yield DurabilityIssue(f"this Redis is a {role}, which takes no writes", "point FLUX2_REDIS_URL at the master")
