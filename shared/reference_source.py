"""Parse the text with which a request gives a reference image: the image itself, or where it is.

    iVBORw0KGgo...                          the file in base64, with or without padding and line breaks
    data:image/png;base64,iVBORw0KGgo...    the same as a data URL
    upload:SHA256                           an image that was uploaded to this service
    https://..., s3://..., hf://...         a file, as `shared.sources.source` reads such addresses

Errors and logs never repeat the text of an image.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final

from shared.errors import AdapterRefused, ReferenceRefused
from shared.sources.source import HttpsFile, HubFile, LocalFile, S3Object, UploadedFile, parse_source

_DATA_URL: Final = re.compile(r"data:[^,;]{0,100}(;[^,;]{1,100}){0,4};base64,", re.IGNORECASE)
# Addresses that `parse_source` would refuse with advice for adapters.
_OTHER_SCHEME: Final = re.compile(r"(?!(?:https?|s3|hf)://)([a-z][a-z0-9+.-]*)://|(file|ftp|gopher):", re.IGNORECASE)
_UPLOAD: Final = re.compile(r"upload:([0-9a-fA-F]{64})")
# Python and JavaScript write base64 for URLs with these two.
_URL_SAFE: Final = str.maketrans("-_", "+/")
_WHITE_SPACE: Final = re.compile(r"[ \t\r\n]+")
# A WebP of one colour has 40. A path without a dot is base64 too, of fewer bytes.
_SMALLEST_BYTES: Final = 26
_FORMS: Final = (
    "an https://, s3:// or hf:// address, `upload:SHA256`, or the image in base64; upload a file of your own with "
    "POST /v1/uploads"
)


@dataclass(frozen=True)
class InlineImage:
    """An image in the request itself; `text` is its base64."""

    text: str = field(repr=False)

    def decode(self, *, max_bytes: int) -> bytes:
        """Return the file's bytes.

        Raises:
            ReferenceRefused: the text is not base64, or the file is too large.
        """
        text = _WHITE_SPACE.sub("", self.text).rstrip("=").translate(_URL_SAFE)
        check_size(len(text) * 3 // 4, max_bytes=max_bytes)
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            # Without the decoder's words: they say nothing to somebody who wrote the name of a file.
            raise _neither() from error
        if len(data) < _SMALLEST_BYTES:
            raise _neither()
        return data


@dataclass(frozen=True)
class UploadedImage:
    """An image that was uploaded to this service."""

    sha256: str

    def __str__(self) -> str:
        return f"upload:{self.sha256}"


@dataclass(frozen=True)
class LocalImage:
    """A file of this host, which only a request that is read on this host may name."""

    path: str

    def __str__(self) -> str:
        return self.path


RemoteImage = HubFile | S3Object | HttpsFile
ReferenceSource = InlineImage | UploadedImage | LocalImage | RemoteImage


def parse_reference(text: str) -> ReferenceSource:
    """Return where a reference image is, without accessing it.

    Raises:
        ReferenceRefused: the text names no image.
    """
    if text[:5].lower() == "data:":
        match = _DATA_URL.match(text)
        if match is None:
            raise ReferenceRefused("a data URL must hold an image in base64: data:image/png;base64,...")
        return InlineImage(text[match.end() :])
    if upload := _UPLOAD.fullmatch(text):
        return UploadedImage(upload[1].lower())
    if other := _OTHER_SCHEME.match(text):
        raise ReferenceRefused(f"the text is a {(other[1] or other[2])[:20].lower()} address; give {_FORMS}")
    try:
        # The address is not stored with the job, so it may carry a signature.
        source = parse_source(text, may_hold_secret=True)
    except AdapterRefused as error:
        raise ReferenceRefused(str(error)) from error
    match source:
        case LocalFile():
            return InlineImage(text)
        case UploadedFile():
            raise ReferenceRefused("an uploaded image is named by its sha256 alone: upload:SHA256")
    return source


def _neither() -> ReferenceRefused:
    return ReferenceRefused(f"the text is neither an image in base64 nor an address; give {_FORMS}")


def check_size(size_bytes: int, *, max_bytes: int) -> None:
    """Refuse a file that is too large for a reference image.

    Raises:
        ReferenceRefused: names both sizes.
    """
    if size_bytes > max_bytes:
        raise ReferenceRefused(
            f"the image has {size_bytes:,} bytes, and FLUX2_REFERENCES_MAX_BYTES is {max_bytes:,}: save it with fewer "
            "pixels, because more than one megapixel is scaled down, or as JPEG"
        )
