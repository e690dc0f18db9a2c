"""Refuse to listen for other hosts while nobody needs a key."""

from __future__ import annotations

import logging

from shared.errors import LedgerUnavailable, UnsafeAddress
from shared.key_check import needs_key
from shared.ledger import Ledger
from shared.network.callers import is_loopback
from shared.settings import Settings

logger = logging.getLogger("flux2.api.keys")


def require_safe_address(settings: Settings) -> None:
    """Raise `UnsafeAddress` if whoever reaches the port could do everything.

    Without an answer from Redis the API starts: on such an address it lets nobody in without a key in any case.
    """
    api = settings.api
    if api.insecure and not is_loopback(api.host):
        logger.warning(
            "whoever reaches this address may do everything unless there are API keys", extra={"host": api.host}
        )
    if not needs_key(api):
        return
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=settings.redis.timeout_s)
    try:
        has_keys = ledger.api_keys.any()
    except LedgerUnavailable as error:
        logger.warning("nobody is let in without an API key", extra={"host": api.host, "redis": str(error)})
        return
    if not has_keys:
        raise UnsafeAddress(
            f"the API would listen on {api.host} without any API key, so that whoever reaches it sees and cancels "
            "everybody's jobs; make a key with `flux2 keys create NAME`, listen on 127.0.0.1 (--host or "
            "FLUX2_API_HOST), or add --insecure (FLUX2_API_INSECURE=true) if only trusted people reach it"
        )
