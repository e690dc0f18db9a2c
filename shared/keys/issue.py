"""Make API keys: `flux2 keys create` and `POST /v1/keys`."""

from __future__ import annotations

from collections.abc import Collection

from shared.catalog import MODELS
from shared.errors import KeyMissing
from shared.job import ENGINES
from shared.keys.record import KeyLimits, KeyRecord, Role
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import Ledger

_DAY_MS = 86_400_000


def check_key_name(name: str) -> str:
    """Return the name of a key; raises ValueError for a text that people could not read."""
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise ValueError("write up to 100 printable characters")
    return name


def check_key_models(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the models of a key; raises ValueError for an unknown one."""
    return _check_known(values, (*MODELS,))


def check_key_engines(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the engines of a key; raises ValueError for an unknown one."""
    return _check_known(values, ENGINES)


def _check_known(values: tuple[str, ...], known: Collection[str]) -> tuple[str, ...]:
    for value in values:
        if value not in known:
            raise ValueError(f"{value!r} is unknown; choose from {', '.join(known)}")
    return values


def issue_key(
    ledger: Ledger,
    *,
    name: str,
    tenant: str,
    roles: frozenset[Role],
    limits: KeyLimits,
    days: float | None,
    must_be_first: bool = False,
) -> tuple[KeyText, KeyRecord]:
    """Store a new key and return it; Redis has only the hash of its text.

    Args:
        days: how long the key is accepted; None for ever.
        must_be_first: store it only if there has never been a key.

    Raises:
        KeyMissing: `must_be_first`, and there is a key.
    """
    text, now_ms = KeyText.make(), ledger.now_ms()
    record = KeyRecord(
        key_id=text.key_id,
        name=name,
        tenant=tenant,
        roles=roles,
        secret=SecretHash.of(text.secret),
        created_ms=now_ms,
        limits=limits,
        expires_ms=None if days is None else now_ms + round(days * _DAY_MS),
    )
    if not must_be_first:
        ledger.api_keys.add(record)
    elif not ledger.api_keys.add_first(record):
        raise KeyMissing
    return text, record
