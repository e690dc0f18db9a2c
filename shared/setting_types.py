"""Types of settings, whose bounds and checks refuse an unusable value when the process starts.

Every number has an upper bound. It is beyond any sensible value, and below those at which a conversion to milliseconds,
a thread's wait or a socket's timeout overflows. A bound also refuses infinity and NaN.
"""

from __future__ import annotations

import base64
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, SecretStr
from pydantic_settings import NoDecode

from shared.catalog import MODELS
from shared.network.callers import Networks, Origins
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.redis_url import RedisUrl

# People write 999999999 s or a billion for "never".
_CENTURY_S = 100 * 365 * 86_400
_SHORTEST_S = 0.001  # the ledger counts in whole milliseconds
# A socket polls with a 32-bit number of milliseconds, which ends at 24 days.
_LONGEST_TIMEOUT_S = 86_400

_KEY_BYTES = range(24, 65)  # as in the Standard Webhooks specification


def _check_key_prefix(value: str) -> str:
    # Refused instead of corrected: a prefix with another spelling would hide the results that are stored already.
    if not value.isprintable():
        raise ValueError(f"{value!r} holds a control character or one that no URL can hold; use letters and digits")
    parts = value.split("/")
    if "\\" in value or any(part in ("", ".", "..") for part in parts[:-1]) or parts[-1] in (".", ".."):
        remedy = "/".join(part for part in value.replace("\\", "/").split("/") if part not in ("", ".", ".."))
        raise ValueError(
            f"{value!r} is not a plain relative path; write {f'{remedy}/' if remedy else ''!r}, "
            "without a slash at the start, and without empty, `.` and `..` parts and backslashes"
        )
    return value


def _check_http_url(value: str) -> str:
    # Logs, answers and presigned URLs repeat an address.
    if "@" in value:
        raise ValueError("holds an @, so perhaps a password; write the address without a login")
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


def _expand_home(value: str) -> str:
    # Only a shell expands `~`, and it does so neither in a .env file nor inside quotes.
    return os.path.expanduser(value)


def _check_region(value: str) -> str:
    # As botocore, which writes the region into the name of a host.
    if not re.fullmatch(r"(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)", value):
        raise ValueError(f"{value!r} is not the code of a region; write for example eu-central-1")
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


def _check_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    # A request's header holds it.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("holds a space, a line break or a character beyond ASCII; copy the token again")
    return token


#: An amount of money, in the currency of the settings.
Price = Annotated[Decimal, Field(ge=0, le=10**9, decimal_places=12)]
Seconds = Annotated[float, Field(ge=_SHORTEST_S, le=_CENTURY_S)]
SecondsOrZero = Annotated[float, Field(ge=0, le=_CENTURY_S)]
WholeSeconds = Annotated[int, Field(ge=1, le=_CENTURY_S)]
#: Time that a network connection has to answer.
Timeout = Annotated[float, Field(ge=_SHORTEST_S, le=_LONGEST_TIMEOUT_S)]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
#: Up to a century.
Days = Annotated[int, Field(ge=1, le=36_500)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
#: Memory in 10^9 bytes, up to a petabyte.
Gigabytes = Annotated[float, Field(gt=0, le=10**6)]
GigabytesOrZero = Annotated[float, Field(ge=0, le=10**6)]

#: A path whose `~` is the home folder.
Folder = Annotated[Path, AfterValidator(lambda path: Path(_expand_home(str(path))))]
File = Folder
#: A folder, whose `~` is the home folder, or a repository id of the hub.
FolderOrRepository = Annotated[str, AfterValidator(_expand_home)]
KeyPrefix = Annotated[str, AfterValidator(_check_key_prefix)]
# The environment's text is no JSON, which pydantic-settings expects for a dataclass.
RedisUrlSetting = Annotated[RedisUrl, NoDecode, PlainValidator(RedisUrl.parse), PlainSerializer(str)]
HostPatternsSetting = Annotated[HostPatterns, NoDecode, PlainValidator(HostPatterns.parse), PlainSerializer(str)]
AnyHostPatternsSetting = Annotated[
    HostPatterns, NoDecode, PlainValidator(HostPatterns.parse_or_any), PlainSerializer(str)
]
PrivateHostsSetting = Annotated[PrivateHosts, NoDecode, PlainValidator(PrivateHosts.parse), PlainSerializer(str)]
NetworksSetting = Annotated[Networks, NoDecode, PlainValidator(Networks.parse), PlainSerializer(str)]
OriginsSetting = Annotated[Origins, NoDecode, PlainValidator(Origins.parse), PlainSerializer(str)]
HostHeadersSetting = Annotated[HostHeaders, NoDecode, PlainValidator(HostHeaders.parse), PlainSerializer(str)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
ModelId = Annotated[str, AfterValidator(_check_model_id)]
Region = Annotated[str, AfterValidator(_check_region)]
Token = Annotated[SecretStr, AfterValidator(_check_token)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
