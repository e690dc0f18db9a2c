"""Read files from S3-compatible storage by ranged requests, pinned to one version of the object."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore import exceptions
from botocore.parsers import ResponseParserError

from shared.errors import AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable
from shared.sources.remote_file import MAX_CHUNK, Pin
from shared.sources.source import FIELD, S3Object

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Failures of the network and of a store that is overloaded or restarts; a request may succeed a moment later.
_UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    # The host's role: its service answers the next request.
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
)
_GONE = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound"})
_FORBIDDEN = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"})
# Answers below 500 after which the same request may succeed.
_LATER = frozenset(
    {"408", "409", "425", "429", "RequestTimeout", "RequestTimeTooSkewed", "ExpiredToken", "SlowDown", "Throttling"}
)
_CHANGED = frozenset({"412", "416", "PreconditionFailed", "InvalidRange"})


@dataclass(frozen=True)
class S3File:
    """One version of an object, as a `RemoteFile`."""

    client: S3Client
    source: S3Object
    size_bytes: int
    pin: Pin
    sha256: str | None = None

    @property
    def name(self) -> str:
        return str(self.source)

    def read(self, start: int, end: int) -> bytes:
        with _errors(self.source, self.pin), self._get(f"bytes={start}-{end - 1}") as body:
            data: bytes = body.read(end - start + 1)
        if len(data) != end - start:
            raise _changed(self.source)
        return data

    def stream(self, start: int) -> Iterator[bytes]:
        if start >= self.size_bytes:
            return
        done = start
        with _errors(self.source, self.pin), self._get(f"bytes={start}-{self.size_bytes - 1}") as body:
            while chunk := body.read(MAX_CHUNK):
                done += len(chunk)
                yield chunk
        if done != self.size_bytes:
            raise SourceUnavailable(f"{self.name}: the store ended its answer after {done} of {self.size_bytes} bytes")

    def _get(self, wanted: str) -> Any:
        """Request a range of the pinned version."""
        return self.client.get_object(
            Bucket=self.source.bucket, Key=self.source.key, Range=wanted, **_condition(self.pin)
        )["Body"]


def open_s3_object(client: S3Client, source: S3Object, *, pin: Pin | None = None) -> S3File:
    """Return the pinned version of an object, or the present one; only its properties are read.

    Raises:
        SourceChanged: the pinned version is gone, or the object has another ETag.
        AdapterNotFound: the store has no such object or bucket.
        AdapterRefused: the credentials may not read it.
        SourceUnavailable: the store does not answer.
    """
    condition = _condition(pin) if pin else {}
    with _errors(source, pin):
        head = client.head_object(Bucket=source.bucket, Key=source.key, ChecksumMode="ENABLED", **condition)
    return S3File(client, source, head["ContentLength"], pin or _pin(head), _stated_sha256(head))


def _pin(head: Mapping[str, Any]) -> Pin:
    version = head.get("VersionId")
    # "null" is the version of objects from before the bucket had versions; another object may take that name.
    return Pin("version", version) if version and version != "null" else Pin("etag", head["ETag"])


def _condition(pin: Pin) -> dict[str, Any]:
    """Return the parameters of a request that the store answers only with the pinned version."""
    return {"VersionId": pin.value} if pin.kind == "version" else {"IfMatch": pin.value}


def _stated_sha256(head: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the whole object, which stores keep if the upload had one."""
    text = head.get("ChecksumSHA256", "")
    # An upload in parts has a digest of the parts' digests, with their number behind a hyphen.
    if not text or "-" in text or head.get("ChecksumType") == "COMPOSITE":
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == 32 else None


@contextmanager
def _errors(source: S3Object, pin: Pin | None) -> Iterator[None]:
    """Turn the store's failures into errors about the source."""
    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(source, pin, error) from error
    except exceptions.NoCredentialsError as error:
        raise AdapterRefused(
            f"{source}: the service has no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the "
            "API and the workers",
            field=FIELD,
        ) from error
    except _UNAVAILABLE as error:
        raise SourceUnavailable(f"{source}: the store does not answer: {str(error)[:300]}") from error
    except exceptions.BotoCoreError as error:
        raise AdapterRefused(f"{source}: {str(error)[:300]}", field=FIELD) from error


def _refusal(source: S3Object, pin: Pin | None, error: exceptions.ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = {code, str(status)}
    if said & _CHANGED:
        return _changed(source)
    if said & _GONE:
        return _gone(source, pin)
    if said & _FORBIDDEN:
        return _forbidden(source)
    if 0 < status < 500 and not said & _LATER:
        return AdapterRefused(
            f"{source}: the store answers {status} {code[:80]!r}; check the bucket, FLUX2_S3_REGION and "
            "FLUX2_S3_ENDPOINT_URL",
            field=FIELD,
        )
    return SourceUnavailable(f"{source}: the store answers {status} {code[:80]!r}; try again later")


def _changed(source: S3Object) -> SourceChanged:
    return SourceChanged(f"{source} is no longer the object that the job named; submit the job again")


def _gone(source: S3Object, pin: Pin | None) -> Exception:
    if pin is not None and pin.kind == "version":
        return SourceChanged(f"{source}: the version that the job named was deleted; submit the job again")
    return AdapterNotFound(f"{source}: the store has no such object; check the bucket and the key", field=FIELD)


def _forbidden(source: S3Object) -> AdapterRefused:
    # Without the right to list a bucket, S3 answers 403 for an object that does not exist.
    return AdapterRefused(
        f"{source}: the service's AWS credentials may not read it, or it does not exist; check the name, or allow "
        "s3:GetObject (and s3:GetObjectVersion) to the API and the workers",
        field=FIELD,
    )
