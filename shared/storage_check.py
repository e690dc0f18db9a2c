"""The part of `flux2 doctor` that checks the store of images, as the service and as a client that opens a link."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from urllib.parse import urlsplit

from shared.errors import StorageUnavailable
from shared.finding import Finding
from shared.settings import Settings
from shared.storage import ObjectStore, open_store
from shared.storage.protocol import new_probe_key

_URL_TTL_S = 60
_LONGEST_DETAIL = 200
_LONGEST_ANSWER = 2000

# The first one whose words an error has.
_REMEDIES = {
    "AuthorizationHeaderMalformed": "set FLUX2_S3_REGION to the region of the bucket",
    "PermanentRedirect": "set FLUX2_S3_REGION to the region of the bucket",
    "IllegalLocationConstraint": "set FLUX2_S3_REGION to the region of the bucket",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY; a proxy before the store must keep the header Host",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "run NTP on this host",
    "Could not connect": "start the store, or correct FLUX2_S3_ENDPOINT_URL and FLUX2_S3_REGION",
    "no client for": "correct the setting, or the file of AWS' configuration, that the message is about",
    "": "create the bucket if it is missing; allow the key to put, get, delete and list",
}

_LINK_REMEDY = (
    "set FLUX2_S3_PUBLIC_ENDPOINT_URL to the URL of the store for clients, and FLUX2_S3_REGION to its region; a proxy "
    "in between must keep the header Host"
)


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Write, read and delete a probe, and open the presigned URL of another one."""
    try:
        store = open_store(settings)
        store.check()
        yield Finding("storage", "ok", "a probe was written, read and deleted")
        if settings.storage.backend == "s3":
            yield _check_links(settings, store)
    except StorageUnavailable as error:
        detail = " ".join(str(error).split())
        yield Finding("storage", "failed", detail, next(text for word, text in _REMEDIES.items() if word in detail))


def _check_links(settings: Settings, store: ObjectStore) -> Finding:
    """Open a presigned URL as a client does: with no credentials, and at the host that the URL names."""
    key = new_probe_key()
    # Unlike any page that a proxy or another store could answer with.
    content = key.encode()
    store.put(key, content, content_type="application/octet-stream")
    try:
        url = store.url(key, expires_s=_URL_TTL_S)
        return _describe(url, content, settings)
    finally:
        store.delete_prefix(key.rpartition("/")[0])


def _describe(url: str, content: bytes, settings: Settings) -> Finding:
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"
    try:
        received = _open(url, timeout_s=settings.s3.timeout_s, limit=len(content) + 1)
    except urllib.error.HTTPError as error:
        return Finding(
            "links",
            "failed",
            f"{where} answers a presigned URL with {error.code} {_code(error)}".rstrip(),
            _LINK_REMEDY,
        )
    except (OSError, HTTPException) as error:
        detail = f"{where} does not answer a presigned URL: {' '.join(str(error).split())[:_LONGEST_DETAIL]}"
        # The public host may be out of this host's reach, for example behind a container's own loopback.
        if settings.s3.public_endpoint_url:
            return Finding("links", "warning", detail, "open a link of a result where your clients run")
        return Finding("links", "failed", detail, "set FLUX2_S3_PUBLIC_ENDPOINT_URL to a host that clients reach")
    if received != content:
        return Finding("links", "failed", f"{where} answers a presigned URL with other bytes", _LINK_REMEDY)
    return Finding("links", "ok", f"a client can open a presigned URL at {where}")


def _open(url: str, *, timeout_s: float, limit: int) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        content: bytes = answer.read(limit)
        return content


def _code(error: urllib.error.HTTPError) -> str:
    """Return the store's word for its refusal, if it says one."""
    found = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", error.read(_LONGEST_ANSWER))
    return found[1].decode() if found else ""
