"""Check the store of images, as the service and as a client that opens a link, and name the remedy of each fault."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from urllib.parse import urlsplit

from shared.errors import ObjectMissing, StorageUnavailable
from shared.finding import Finding
from shared.settings import Settings
from shared.storage import FileStore, ObjectStore, open_store
from shared.storage.protocol import new_probe_key

_LONGEST_DETAIL = 200
_LONGEST_ANSWER = 2000

_ADDRESS = "correct FLUX2_S3_ENDPOINT_URL: its host, its port, and http:// or https://"
_REGION = "set FLUX2_S3_REGION to the region of the bucket"
_CLOCK = "run NTP on this host: its clock differs from that of the store"

# The first one whose words an error has.
_REMEDIES = {
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraint": _REGION,
    "Invalid bucket name": "set FLUX2_S3_BUCKET to the bucket's name, without a path and without a URL",
    "NoSuchBucket": "create the bucket, or correct FLUX2_S3_BUCKET",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
    "ExpiredToken": "renew the temporary credentials, which end with AWS_SESSION_TOKEN",
    "InvalidToken": "correct AWS_SESSION_TOKEN, or remove it if the key is not temporary",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY; a proxy before the store must keep the header Host",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID, and AWS_SESSION_TOKEN if the key is temporary",
    "RequestTimeTooSkewed": _CLOCK,
    "WRONG_VERSION_NUMBER": _ADDRESS,
    "SSL validation failed": (
        "set AWS_CA_BUNDLE to the file of the CA of the store, and the host to the name in its certificate"
    ),
    "connect to proxy": "correct HTTP_PROXY and HTTPS_PROXY, or add the host of the store to NO_PROXY",
    "Could not connect": "start the store, or correct FLUX2_S3_ENDPOINT_URL and FLUX2_S3_REGION",
    "timeout on endpoint": "look whether the store works, and whether a firewall in between drops packets",
    "no client for": "correct the setting, or the file of AWS' configuration, that the message is about",
    "AccessDenied": "allow the key to put, get, delete and list in this bucket",
    # Without a word of S3: another program answers, or one with TLS.
    " '' ''": _ADDRESS,
    ": 404 '404'": _ADDRESS,
    ": 405 '405'": _ADDRESS,
    ": 400 '400'": _ADDRESS,
    "Unable to parse response": _ADDRESS,
    "Connection was closed": _ADDRESS,
    ": 50": "read the log of the store: it fails by itself, or does not know FLUX2_S3_SSE",
    "": "create the bucket if it is missing; allow the key to put, get, delete and list",
}

_LINK_REMEDY = (
    "set FLUX2_S3_PUBLIC_ENDPOINT_URL to the URL of the store for clients, and FLUX2_S3_REGION to its region; a proxy "
    "in between must keep the header Host"
)
# Words of stores about a link that has ended already, or not begun, in lower case.
_CLOCK_WORDS = ("expired", "not yet valid", "not valid yet", "timetooskewed")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Write, read and delete a probe, list it, and open the presigned URL of another one."""
    try:
        store = open_store(settings)
        store.check()
        yield Finding("storage", "ok", "a probe was written, read and deleted")
        if settings.storage.backend == "s3":
            yield from _check_listing(store)
            yield _check_links(settings, store)
    except StorageUnavailable as error:
        detail = _in_one_line(error)
        yield Finding("storage", "failed", detail, _find_remedy(detail))


def require_storage(store: ObjectStore) -> None:
    """Check the store at a start; the message of a `StorageUnavailable` ends with the remedy."""
    try:
        store.check()
    except StorageUnavailable as error:
        detail = _in_one_line(error)
        raise StorageUnavailable(f"{detail}; {_find_remedy(detail)}") from error


def _find_remedy(detail: str) -> str:
    return next(text for word, text in _REMEDIES.items() if word in detail)


def _check_listing(store: FileStore) -> Iterator[Finding]:
    """Report a key that may not list: jobs run without it, so it is a warning."""
    try:
        store.list_objects(new_probe_key().rpartition("/")[0], limit=1)
    except ObjectMissing as error:
        # The store takes the bucket for an object: a URL that holds the bucket's name already.
        remedy = "remove the name of the bucket from the end of FLUX2_S3_ENDPOINT_URL"
        yield Finding("storage", "warning", _in_one_line(error), remedy)
    except StorageUnavailable as error:
        remedy = (
            "allow the key to list (s3:ListBucket); without it uploads are not listed, and some images stay forever"
        )
        yield Finding("storage", "warning", _in_one_line(error), remedy)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_links(settings: Settings, store: FileStore) -> Finding:
    """Open a presigned URL as a client does: with no credentials, and at the host that the URL names."""
    key = new_probe_key()
    # Unlike any page that a proxy or another store could answer with.
    content = key.encode()
    store.put(key, content, content_type="application/octet-stream")
    try:
        # As long as the links of results: some stores refuse long ones, and short ones end before clocks agree.
        url = store.url(key, expires_s=settings.storage.url_ttl_s)
        return _describe(url, content, settings)
    finally:
        store.delete(key)


def _describe(url: str, content: bytes, settings: Settings) -> Finding:
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"
    try:
        received = _open(url, timeout_s=settings.s3.timeout_s, limit=len(content) + 1)
    except urllib.error.HTTPError as error:
        answer = error.read(_LONGEST_ANSWER).decode(errors="replace")
        has_ended = any(words in answer.lower() for words in _CLOCK_WORDS)
        return Finding(
            "links",
            "failed",
            f"{where} answers a presigned URL with {error.code} {_code(answer)}".rstrip(),
            f"{_CLOCK}, or temporary credentials have ended" if has_ended else _LINK_REMEDY,
        )
    except (OSError, HTTPException) as error:
        detail = f"{where} does not answer a presigned URL: {_in_one_line(error)[:_LONGEST_DETAIL]}"
        if "CERTIFICATE_VERIFY_FAILED" in detail:
            # AWS_CA_BUNDLE is boto3's own, so it does not count for a client.
            return Finding(
                "links",
                "warning",
                detail,
                "let your clients trust the CA of the store, or give it a public certificate",
            )
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


def _code(answer: str) -> str:
    """Return the store's word for its refusal, if it says one."""
    found = re.search(r"<Code>([A-Za-z]{1,60})</Code>", answer)
    return found[1] if found else ""
