"""Types of settings that need more than pydantic's own checks; a wrong value is refused when the process starts."""

from __future__ import annotations

import base64
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr
from redis.connection import parse_url

from shared.catalog import MODELS

_KEY_BYTES = range(24, 65)  # as in the Standard Webhooks specification


def _check_redis_url(value: str) -> str:
    parse_url(value)  # type: ignore[no-untyped-call]  # its message lists the schemes
    return value


def _check_http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{value!r} is not a URL; its port must be a number from 0 to 65535") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not a URL; it must begin with http:// or https:// and a host")
    return value


def _check_model_id(value: str) -> str:
    if value not in MODELS:
        raise ValueError(f"unknown model id {value!r}; choose one of {', '.join(MODELS)}")
    return value


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    prefix, _, key = secret.get_secret_value().partition("_")
    try:
        size = len(base64.b64decode(key, validate=True))
    except ValueError as error:
        raise ValueError("not `whsec_` and base64; make one with: echo whsec_$(openssl rand -base64 32)") from error
    if prefix != "whsec" or size not in _KEY_BYTES:
        raise ValueError(
            "not `whsec_` and base64 of 24 to 64 bytes; make one with: echo whsec_$(openssl rand -base64 32)"
        )
    return secret


RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
ModelId = Annotated[str, AfterValidator(_check_model_id)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
