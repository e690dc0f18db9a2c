"""Limit how many wrong API keys may come from one address, over all API processes."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from contextlib import suppress

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter

from shared.errors import LedgerRefused, TooManyFailures
from shared.ledger import Ledger
from shared.ledger.keys import PREFIX

logger = logging.getLogger("flux2.api.keys")

#: Wrong keys from one address in a minute after which no other is looked at until the minute is over.
MOST_PER_MINUTE = 20
_NETWORK_BITS = 64  # of IPv6, which one caller has as a whole


class Failures:
    """Counts wrong keys in Redis; each call may raise `LedgerUnavailable`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # The ledger's own connections: the library opens none, and needs no second configuration of TLS.
        storage = RedisStorage(
            "redis://", connection_pool=ledger.redis.connection_pool, key_prefix=f"{PREFIX}key_failures"
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._limit = RateLimitItemPerMinute(MOST_PER_MINUTE)

    def check(self, address: str) -> None:
        """Raise `TooManyFailures` if too many wrong keys came from an address."""
        place = _place(address)
        with self._ledger.commands():
            if not self._limiter.test(self._limit, place):
                reset_s = self._limiter.get_window_stats(self._limit, place).reset_time
                raise TooManyFailures(max(1, math.ceil(reset_s - time.time())))

    def record(self, address: str) -> None:
        """Count a wrong key."""
        place = _place(address)
        # A full Redis counts nothing; the caller is refused either way.
        with suppress(LedgerRefused), self._ledger.commands():
            self._limiter.hit(self._limit, place)
        # At most as often as they are counted, so nobody can fill the log.
        logger.warning("a wrong API key was refused", extra={"address": place})


def _place(address: str) -> str:
    """Return what shares a count: an address, or a network of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, _NETWORK_BITS), strict=False).network_address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
