"""Read what the headers of an upload state about its file, before any of it is received."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import (
    ContentTypeRefused,
    DigestMismatch,
    InvalidRequest,
    LengthRequired,
    UploadTooLarge,
)
from shared.sources.source import UPLOAD_NAME

_LENGTH = re.compile(r"[0-9]{1,18}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# RFC 9530; a sender may give digests of several algorithms.
_CONTENT_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([^:]*):")
#: What `X-Content-SHA256` may be, for the API's document; the code below reads it.
SHA256_PATTERN = "^([0-9A-Fa-f]{64})?$"
DIGEST_RULES = {
    "INVALID_REQUEST": "A digest is one of 32 bytes, and both headers state the same.",
    "DIGEST_MISMATCH": "The body has the digest that a header states.",
    "UPLOAD_INCOMPLETE": "The whole body arrives, at 64 KiB/s or faster.",
    "LENGTH_REQUIRED": "`Content-Length` states the size of the body.",
}
# Characters of a caller's header that a message repeats.
_SHOWN_CHARS = 100


@dataclass(frozen=True)
class FileRules:
    """What a route takes as the file of an upload.

    Attributes:
        content_types: matches each type that a body may have, in lower case; an empty text stands for no type.
        how: how to send the file, as the end of a message.
        limit: the name of the setting that is `max_bytes`.
    """

    content_types: re.Pattern[str]
    how: str
    max_bytes: int
    limit: str


@dataclass(frozen=True)
class StatedFile:
    """The file of an upload, as its sender describes it; `sha256` is None if the sender states none."""

    size_bytes: int
    sha256: str | None

    def check_digest(self, sha256: str) -> None:
        """Raise `DigestMismatch` if the bytes that arrived are not those that were stated."""
        if self.sha256 not in (None, sha256):
            raise DigestMismatch(
                f"the bytes that arrived have the sha256 {sha256}, and the request states {self.sha256}; nothing was "
                "stored, so send the file again"
            )


def read_upload_headers(headers: Mapping[str, str], rules: FileRules) -> StatedFile:
    """Return what a request states about its file.

    Raises:
        InvalidRequest: a digest has no sound form.
        ContentTypeRefused: the body is not the file itself.
        LengthRequired, UploadTooLarge: the size is missing, or above `rules.max_bytes`.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_encoded = headers.get("content-encoding", "identity") != "identity"
    if is_encoded or not rules.content_types.fullmatch(content_type):
        raise ContentTypeRefused(f"send the file itself as the body, {rules.how}")
    length = headers.get("content-length", "")
    if not _LENGTH.fullmatch(length):
        raise LengthRequired("the upload has no Content-Length; send the size of the file, as curl does")
    if int(length) > rules.max_bytes:
        raise UploadTooLarge(
            f"the file has {length} bytes, and the limit is {rules.max_bytes}; use a smaller file, or ask the operator "
            f"to raise {rules.limit}"
        )
    return StatedFile(int(length), _stated_sha256(headers))


def _stated_sha256(headers: Mapping[str, str]) -> str | None:
    plain = headers.get("x-content-sha256", "").strip().lower()
    if plain and not _SHA256.fullmatch(plain):
        raise InvalidRequest("X-Content-SHA256 is not a sha256; write 64 hexadecimal digits")
    match = _CONTENT_DIGEST.search(headers.get("content-digest", ""))
    if match is None:
        return plain or None
    try:
        digest = base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        digest = ""
    if not _SHA256.fullmatch(digest):
        raise InvalidRequest("Content-Digest has no sound sha-256; write sha-256=:BASE64 OF 32 BYTES:")
    if plain and plain != digest:
        raise InvalidRequest("X-Content-SHA256 and Content-Digest differ; send one of them")
    return digest


def check_upload_name(name: str) -> None:
    """Raise `InvalidRequest` for a text that cannot name an upload."""
    if not UPLOAD_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:_SHOWN_CHARS]!r} cannot name an upload; use up to 128 letters, digits, '.', '_' and '-', and "
            "begin with a letter or a digit",
            field="name",
        )
