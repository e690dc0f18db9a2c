"""The records of API keys in Redis, next to the jobs that they submit.

A record is never deleted: an API that required a key yesterday must not be open today because the last one was revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import WatchError

from shared.errors import KeyRefused
from shared.keys.record import KeyRecord
from shared.keys.secret import SecretHash
from shared.ledger import keys
from shared.ledger.session import Session

_ALL: Final = 2**31


class ApiKeys:
    """Every API key; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def any(self) -> bool:
        """Return whether a key was ever created."""
        with self._session.commands():
            return bool(self._session.redis.exists(keys.API_KEYS))

    def add(self, record: KeyRecord) -> None:
        """Store a new key."""
        with self._session.commands(), self._session.redis.pipeline() as pipe:
            _store(pipe, record)
            pipe.execute()

    def add_first(self, record: KeyRecord) -> bool:
        """Store a key if there has never been one; return whether it was stored."""
        with self._session.commands(), self._session.redis.pipeline() as pipe:
            pipe.watch(keys.API_KEYS)
            if pipe.exists(keys.API_KEYS):
                return False
            pipe.multi()
            _store(pipe, record)
            try:
                pipe.execute()
            except WatchError:
                # Another call made one in the same moment.
                return False
        return True

    def read(self, key_id: str) -> tuple[Mapping[str, str], int]:
        """Return the fields of a key, empty if there is no such key, and the time in ms since the epoch."""
        with self._session.commands(), self._session.redis.pipeline(transaction=False) as pipe:
            fields, (seconds, micros) = pipe.hgetall(keys.api_key(key_id)).time().execute()
        override_ms = self._session.clock_override_ms()
        return fields, int(seconds) * 1000 + int(micros) // 1000 if override_ms is None else override_ms

    def find(self, key_id: str) -> KeyRecord | None:
        """Return a key; None if there is no such key."""
        fields, _ = self.read(key_id)
        return _parse(key_id, fields) if fields else None

    def all(self) -> list[KeyRecord]:
        """Return every key, the oldest first."""
        return [_parse(key_id, fields) for key_id, fields in self.page(0, _ALL)]

    def page(self, start: int, limit: int) -> list[tuple[str, dict[str, str]]]:
        """Return the ids and fields of keys, the oldest first.

        Args:
            start: how many of the oldest to leave out. No key is ever removed, so a page stays where it is.
        """
        with self._session.commands():
            ids = self._session.redis.zrange(keys.API_KEYS, start, start + limit - 1)
            with self._session.redis.pipeline(transaction=False) as pipe:
                for key_id in ids:
                    pipe.hgetall(keys.api_key(key_id))
                found = pipe.execute()
        return list(zip(ids, found, strict=True))

    def update(self, before: KeyRecord, after: KeyRecord) -> None:
        """Store which fields differ of the roles, the limits and the expiry of a key.

        Every other field stays as it is by now: another command may have changed it, or rotated or revoked the key.
        """
        old, new = before.fields(), after.fields()
        changed = {name: new.get(name) for name in ("roles", "limits", "expires_ms") if new.get(name) != old.get(name)}
        name = keys.api_key(after.key_id)
        with self._session.commands(), self._session.redis.pipeline() as pipe:
            for field, value in changed.items():
                if value is None:
                    pipe.hdel(name, field)
                else:
                    pipe.hset(name, field, value)
            pipe.execute()

    def revoke(self, key_id: str) -> bool:
        """Revoke a key for good; return False if there is no such key. A second revoke changes nothing."""
        now_ms = self._session.now_ms()
        with self._session.commands():
            if not self._session.redis.exists(keys.api_key(key_id)):
                return False
            self._session.redis.hsetnx(keys.api_key(key_id), "revoked_ms", now_ms)
        return True

    def rotate(self, record: KeyRecord, secret: SecretHash, *, previous_until_ms: int) -> None:
        """Give a key another secret; the present one is accepted until `previous_until_ms`."""
        rotated = record.rotated(secret, previous_until_ms=previous_until_ms)
        fields = {"salt": secret.salt, "digest": secret.digest, **rotated.previous_fields()}
        with self._session.commands():
            self._session.redis.hset(keys.api_key(record.key_id), mapping=fields)

    def mark_used(self, key_id: str, day: str) -> None:
        """Remember that a key was used on a day."""
        with self._session.commands():
            self._session.redis.hset(keys.api_key(key_id), "used_on", day)


def _store(pipe: Any, record: KeyRecord) -> None:
    pipe.hset(keys.api_key(record.key_id), mapping=record.fields())
    pipe.zadd(keys.API_KEYS, {record.key_id: record.created_ms})


def _parse(key_id: str, fields: Mapping[str, str]) -> KeyRecord:
    try:
        return KeyRecord.read(key_id, fields)
    except ValueError as error:
        raise KeyRefused(
            f"the key {key_id} has a limit of a later version, so no API of this version accepts it; use the `flux2` "
            "of that version, or revoke the key"
        ) from error
