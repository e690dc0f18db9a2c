"""Read what the headers of an upload state about its file, before any of it is received."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from shared.errors import ContentTypeRefused, InvalidRequest, LengthRequired, UploadTooLarge
from shared.sources.source import UPLOAD_NAME

_TYPE = "application/octet-stream"
_LENGTH = re.compile(r"[0-9]{1,18}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# RFC 9530; a sender may give digests of several algorithms.
_CONTENT_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([^:]*):")
# Characters of a caller's header that a message repeats.
_SHOWN_CHARS = 100


def read_upload_headers(headers: Mapping[str, str], name: str, *, max_bytes: int) -> tuple[int, str | None]:
    """Return the size of the file that a request states, and the sha256 if it states one.

    Raises:
        InvalidRequest: the name, or a digest, has no sound form.
        ContentTypeRefused: the body is not the file itself.
        LengthRequired, UploadTooLarge: the size is missing, or above `max_bytes`.
    """
    check_upload_name(name)
    content_type = headers.get("content-type", _TYPE).partition(";")[0].strip().lower()
    if content_type != _TYPE or headers.get("content-encoding", "identity") != "identity":
        raise ContentTypeRefused(
            f"send the file itself as the body, with content-type: {_TYPE} and no content-encoding (with curl: -T FILE)"
        )
    length = headers.get("content-length", "")
    if not _LENGTH.fullmatch(length):
        raise LengthRequired("the upload has no Content-Length; send the size of the file (curl -T FILE does)")
    if int(length) > max_bytes:
        raise UploadTooLarge(
            f"the file has {length} bytes, and the limit is {max_bytes}; use a smaller file, or ask the "
            "operator to raise FLUX2_ADAPTERS_MAX_BYTES"
        )
    return int(length), _stated_sha256(headers)


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
