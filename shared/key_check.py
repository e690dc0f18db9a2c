"""The check of API keys in `flux2 doctor`: who may call the API, and whose key ends soon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from shared.errors import KeyRefused
from shared.finding import Finding
from shared.keys.record import KeyRecord
from shared.ledger import Ledger
from shared.network.callers import is_loopback
from shared.settings import ApiSettings

_DAY_MS = 86_400_000
# Time to give a caller another expiry, and for which an expired key explains that its caller is refused.
_NOTICE_MS = 7 * _DAY_MS


def needs_key(settings: ApiSettings) -> bool:
    """Return whether the API does not start before there is an API key."""
    # A proxy that names its callers lets in nobody else.
    return not (is_loopback(settings.host) or settings.insecure or settings.trusted_proxies.networks)


def check_keys(ledger: Ledger, settings: ApiSettings) -> Iterator[Finding]:
    """Report an API that is open to other hosts, keys that end, and the lack of one that may do everything."""
    try:
        records = ledger.api_keys.all()
    except KeyRefused as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding("keys", "warning", detail, remedy)
        return
    if not records:
        yield _without_keys(settings)
        return
    now_ms = ledger.now_ms()
    yield from _endings(records, now_ms)
    states = Counter(record.state(now_ms=now_ms) for record in records)
    detail = ", ".join(f"{states[state]} {state}" for state in ("active", "expired", "revoked") if states[state])
    active = [record for record in records if record.state(now_ms=now_ms) == "active"]
    if not active and not settings.trusted_proxies.networks:
        yield Finding(
            "keys", "failed", f"{detail}: every caller is refused", "make a key with `flux2 keys create NAME`"
        )
    elif not any("admin" in record.roles for record in active):
        yield Finding(
            "keys",
            "warning",
            f"{detail}, and none has the role admin: nobody sees the jobs of every tenant",
            "make one for the operator with `flux2 keys create operator --role admin`",
        )
    else:
        yield Finding("keys", "ok", detail)


def _without_keys(settings: ApiSettings) -> Finding:
    if is_loopback(settings.host):
        return Finding("keys", "ok", f"no key is needed, and only this host reaches {settings.host}")
    if settings.trusted_proxies.networks:
        return Finding("keys", "ok", "no key; the callers are those that a trusted proxy names")
    remedy = "make a key with `flux2 keys create NAME`; then every caller needs one"
    if settings.insecure:
        return Finding(
            "keys", "warning", f"no key is needed, so whoever reaches {settings.host} may do everything", remedy
        )
    return Finding("keys", "failed", f"the API does not start on {settings.host} without an API key", remedy)


def _endings(records: Sequence[KeyRecord], now_ms: int) -> Iterator[Finding]:
    for record in records:
        if record.expires_ms is None or record.revoked_ms is not None:
            continue
        left_ms = record.expires_ms - now_ms
        if abs(left_ms) < _NOTICE_MS:
            days = f"{abs(left_ms) / _DAY_MS:.1f} days"
            end = f"expires in {days}" if left_ms > 0 else f"expired {days} ago"
            yield Finding(
                "keys",
                "warning",
                f"{record.key_id} ({record.name}) {end}",
                f"give it another expiry with `flux2 keys update {record.key_id} --days 90`, or revoke it",
            )
