"""Find out whose key a caller sent, with at most one read of Redis in a few seconds for each key."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
from anyio import CapacityLimiter, to_thread
from cachetools import TTLCache

from api.doors.caller import Caller
from api.doors.failures import Failures
from shared.errors import KeyInvalid, LedgerUnavailable
from shared.keys.record import KeyRecord
from shared.keys.secret import KeyText
from shared.ledger.api_keys import ApiKeys

logger = logging.getLogger("flux2.api.keys")

#: Seconds after which a record is read again: a revoked key works no longer than this.
FRESH_S = 3.0
# A caller whose key matched a record this recently does not guess, and is not held up by guesses from its address.
_REMEMBERED_S = 3600.0
_MOST_REMEMBERED = 10_000
# Wrong keys must not take the threads that answer other calls.
_THREADS = 4


@dataclass(frozen=True)
class _Reading:
    """A record, and Redis' time when it was read.

    Attributes:
        read_s: the same moment on this process' monotonic clock.
    """

    record: KeyRecord
    time_ms: int
    read_s: float

    @property
    def now_ms(self) -> int:
        """Redis' time now: keys expire by its clock, as leases do."""
        return self.time_ms + int((time.monotonic() - self.read_s) * 1000)

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.read_s < FRESH_S


class Keyring:
    """The keys that callers sent to this process lately. All methods run on the event loop."""

    def __init__(self, keys: ApiKeys, failures: Failures) -> None:
        self._keys = keys
        self._failures = failures
        self._readings: TTLCache[str, _Reading] = TTLCache(_MOST_REMEMBERED, _REMEMBERED_S)
        self._threads = CapacityLimiter(_THREADS)
        self._lock = anyio.Lock()
        self._has_keys = False
        self._looked_s: float | None = None

    async def has_keys(self) -> bool:
        """Return whether a key was ever created, as of the last few seconds; while Redis is away, as of before.

        Raises:
            LedgerUnavailable: Redis did not answer yet, so nobody knows.
        """
        # A call that looks for keys holds up no other, unless nobody knows yet.
        if self._is_known or (self._looked_s is not None and self._lock.locked()):
            return self._has_keys
        async with self._lock:
            if self._is_known:
                return self._has_keys
            try:
                # Once there was a key it stays so, even if Redis lost it: this process then refuses every caller.
                self._has_keys = await to_thread.run_sync(self._keys.any, limiter=self._threads)
            except LedgerUnavailable:
                # Nobody makes a key in a Redis that is away.
                if self._looked_s is None:
                    raise
            self._looked_s = time.monotonic()
        return self._has_keys

    @property
    def _is_known(self) -> bool:
        return self._has_keys or (self._looked_s is not None and time.monotonic() - self._looked_s < FRESH_S)

    async def identify(self, text: str, *, address: str) -> Caller:
        """Return the caller who sent a key.

        Args:
            address: where the call comes from; too many wrong keys from there are not looked at for a while.

        Raises:
            KeyInvalid: the key is wrong, revoked or expired.
            TooManyFailures: see `address`.
            LedgerUnavailable: Redis does not answer.
        """
        key = KeyText.parse(text)
        known = self._readings.get(key.key_id) if key else None
        if key and known and known.record.matches(key.secret, now_ms=known.now_ms):
            reading = known if known.is_fresh else await self._read(key.key_id)
        else:
            await to_thread.run_sync(self._failures.check, address, limiter=self._threads)
            reading = await self._read(key.key_id) if key else None
        if not key or not reading or not reading.record.matches(key.secret, now_ms=reading.now_ms):
            await to_thread.run_sync(self._failures.record, address, limiter=self._threads)
            raise KeyInvalid("nobody has this API key; check that all of it was copied, or ask the operator for one")
        return _caller(reading)

    async def _read(self, key_id: str) -> _Reading | None:
        reading = await to_thread.run_sync(self._read_now, key_id, limiter=self._threads)
        if reading is None:
            self._readings.pop(key_id, None)
        else:
            self._readings[key_id] = reading
        return reading

    def _read_now(self, key_id: str) -> _Reading | None:
        # Before the call: the record is at least as new as this.
        read_s = time.monotonic()
        fields, time_ms = self._keys.read(key_id)
        if not fields:
            return None
        try:
            record = KeyRecord.read(key_id, fields)
        except ValueError:
            logger.exception("a key has limits of a later version, so it is refused", extra={"key": key_id})
            return None
        today = datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()
        if record.used_on != today and record.state(now_ms=time_ms) == "active":
            # A Redis that is full, or a replica, still serves reads to callers with keys.
            with suppress(LedgerUnavailable):
                self._keys.mark_used(key_id, today)
        return _Reading(record, time_ms, read_s)


def _caller(reading: _Reading) -> Caller:
    record = reading.record
    state = record.state(now_ms=reading.now_ms)
    if state != "active":
        remedy = "ask the operator for another one (`flux2 keys create`)"
        raise KeyInvalid(
            f"the API key {record.key_id} {'has expired' if state == 'expired' else 'was revoked'}; {remedy}"
        )
    return Caller(tenant=record.tenant, roles=record.roles, key_id=record.key_id, limits=record.limits)
