"""The keys that sign webhooks: one for each tenant, made from `FLUX2_WEBHOOK_SECRET`, so that none is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

from shared.keys.record import DEFAULT_TENANT
from shared.settings import WebhookSettings

_PREFIX: Final = "whsec_"
# Keeps these keys apart from whatever else may be made from the same secret.
_PURPOSE: Final = b"flux2-queue webhooks of tenant "


def tenant_secret(secret: str, tenant: str) -> str:
    """Return the secret of a tenant, in the form of Standard Webhooks; that of `default` is `secret` itself.

    Nobody can compute `secret`, or the secret of another tenant, from that of a tenant other than `default`.
    """
    if tenant == DEFAULT_TENANT:
        return secret
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    made = hmac.digest(key, _PURPOSE + tenant.encode(), hashlib.sha256)
    return _PREFIX + base64.b64encode(made).decode()


def signing_secrets(settings: WebhookSettings, tenant: str) -> list[str]:
    """Return the secrets that sign a message of a tenant: its own, and the shared one if a setting keeps it."""
    assert settings.secret is not None
    shared = settings.secret.get_secret_value()
    own = tenant_secret(shared, tenant)
    return [own, shared] if settings.shared_signature and own != shared else [own]
