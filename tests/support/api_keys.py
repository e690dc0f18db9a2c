"""Make API keys without the command line."""

from shared.keys.record import KeyLimits, KeyRecord
from shared.keys.secret import KeyText, SecretHash


def add_key(ledger, *, tenant="default", roles=("submit", "read"), expires_in_ms=None, **limits):
    """Store a key in a ledger and return its text."""
    text, now_ms = KeyText.make(), ledger.now_ms()
    ledger.api_keys.add(
        KeyRecord(
            key_id=text.key_id,
            name="test",
            tenant=tenant,
            roles=frozenset(roles),
            secret=SecretHash.of(text.secret),
            created_ms=now_ms,
            limits=KeyLimits(**limits),
            expires_ms=None if expires_in_ms is None else now_ms + expires_in_ms,
        )
    )
    return str(text)
