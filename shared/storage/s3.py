"""Store objects in an S3-compatible bucket.

Two layers retry: botocore repeats a failed request once, immediately; tenacity then repeats it for the retry budget.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from botocore import exceptions
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from shared.errors import ObjectMissing, StorageUnavailable
from shared.metrics.definitions import STORAGE_ERRORS
from shared.metrics.tally import PROCESS
from shared.settings import S3Settings
from shared.storage.protocol import MAX_CHUNK, StoredObject, new_probe_key, validate_key
from shared.storage.s3_client import make_client
from shared.storage.s3_writer import S3Writer

logger = logging.getLogger("flux2.storage")

T = TypeVar("T")

# Each wait is random, below a bound that doubles from the first to the longest, so that workers do not retry in step.
_FIRST_WAIT_S = 0.4
_LONGEST_WAIT_S = 8.0

# Failures that may pass, regardless of their HTTP status. A wrong key or a missing bucket fails immediately, because
# waiting would hide it.
_TRANSIENT_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"})
_TRANSIENT_ERRORS = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    ResponseParserError,
)
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload"})
_ERRORS = (exceptions.BotoCoreError, exceptions.ClientError, ResponseParserError)


class S3Store:
    """A `FileStore` in one bucket; safe to share between threads."""

    def __init__(
        self,
        settings: S3Settings,
        *,
        credentials: Mapping[str, str | None] | None = None,
        prefix: str = "",
        retry_budget_s: float = 60.0,
    ) -> None:
        """Open the store without sending anything. Each later call takes at most the budget plus one request.

        Args:
            credentials: keyword arguments of a boto3 session; None lets boto3 search its usual places.
        """
        self._bucket = settings.bucket
        self._prefix = prefix
        self._retry_budget_s = retry_budget_s
        self._where = f"bucket {settings.bucket!r} at {settings.endpoint_url or 'AWS S3'}"
        self._encryption = _encryption(settings)
        self._client = make_client(settings, endpoint_url=settings.endpoint_url, credentials=credentials or {})
        public = settings.public_endpoint_url
        self._signer = (
            make_client(settings, endpoint_url=public, credentials=credentials or {}) if public else self._client
        )

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        name = self._name(key)
        self._retrying("PUT", key, lambda: self._put(name, data, content_type=content_type))

    def url(self, key: str, *, expires_s: int) -> str:
        """Return a presigned SigV4 GET; browsers show the image and save it under a name made from the key."""
        params = {
            "Bucket": self._bucket,
            "Key": self._name(key),
            "ResponseContentDisposition": f'inline; filename="{_filename(key)}"',
        }
        return self._once(
            "sign", key, lambda: self._signer.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)
        )

    def get(self, key: str) -> bytes:
        name = self._name(key)
        return self._retrying("GET", key, lambda: self._get(name))

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> StoredObject | None:
        name = self._name(key)
        return self._retrying("HEAD", key, lambda: self._stat(key, name))

    def read(self, key: str, start: int, end: int) -> bytes:
        name = self._name(key)
        return self._retrying("GET", key, lambda: self._get(name, f"bytes={start}-{end - 1}"))

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        name = self._name(key)
        body = self._once("GET", key, lambda: self._open(name, f"bytes={start}-"))
        with body:
            while chunk := self._once("GET", key, lambda: body.read(MAX_CHUNK)):
                yield chunk

    def open_writer(self, key: str, *, content_type: str) -> S3Writer:
        return S3Writer(
            self._client,
            self._bucket,
            key,
            find_name=self._name,
            parameters={"ContentType": content_type, **self._encryption},
            call=self._retrying,
        )

    def list_objects(self, prefix: str, *, after: str = "", limit: int) -> list[StoredObject]:
        folder = f"{self._name(prefix)}/"
        # Not checked as a key: consoles show a folder by an object whose name ends in a slash.
        start: dict[str, Any] = {"StartAfter": f"{self._prefix}{after}"} if after else {}
        page = self._retrying(
            "LIST",
            prefix,
            lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=folder, MaxKeys=limit, **start),
        )
        return [
            StoredObject(entry["Key"].removeprefix(self._prefix), entry["Size"], entry["LastModified"].timestamp())
            for entry in page.get("Contents", ())
        ]

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._retrying("DELETE", key, lambda: self._delete(name))

    def delete_prefix(self, prefix: str) -> int:
        folder = f"{self._name(prefix)}/"
        names = self._retrying("LIST", prefix, lambda: self._list(folder))
        # One request per object: multi-object delete needs a checksum that not every S3-compatible store understands.
        for name in names:
            self._retrying("DELETE", prefix, partial(self._delete, name))
        return len(names)

    def check(self) -> None:
        key = new_probe_key()
        name = self._name(key)
        self._once("PUT", key, lambda: self._put(name, b"flux2", content_type="application/octet-stream"))
        try:
            if self._once("GET", key, lambda: self._get(name)) != b"flux2":
                raise StorageUnavailable(f"GET {key}: {self._where} returned other bytes than were written")
        except StorageUnavailable:
            # `/ready` checks each second: a bucket that cannot be read would fill up with probes.
            with suppress(StorageUnavailable):
                self._once("DELETE", key, lambda: self._delete(name))
            raise
        self._once("DELETE", key, lambda: self._delete(name))

    def _name(self, key: str) -> str:
        return validate_key(f"{self._prefix}{validate_key(key)}")

    def _put(self, name: str, data: bytes, *, content_type: str) -> None:
        # S3's oldest integrity check, which every compatible store performs.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client.put_object(
            Bucket=self._bucket, Key=name, Body=data, ContentType=content_type, ContentMD5=digest, **self._encryption
        )

    def _get(self, name: str, wanted: str | None = None) -> bytes:
        with self._open(name, wanted) as body:
            data: bytes = body.read()
            return data

    def _open(self, name: str, wanted: str | None) -> Any:
        """Request an object, or the bytes of it that a Range header names."""
        part: dict[str, Any] = {"Range": wanted} if wanted else {}
        return self._client.get_object(Bucket=self._bucket, Key=name, **part)["Body"]

    def _stat(self, key: str, name: str) -> StoredObject | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=name)
        except exceptions.ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return StoredObject(key, head["ContentLength"], head["LastModified"].timestamp())

    def _list(self, folder: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def _delete(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=name)

    def _retrying(self, verb: str, key: str, request: Callable[[], T]) -> T:
        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_before_delay(self._retry_budget_s),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            before_sleep=partial(_log_retry, verb),
            reraise=True,
        )
        return self._once(verb, key, lambda: retrying(request))

    def _once(self, verb: str, key: str, request: Callable[[], T]) -> T:
        try:
            return request()
        except _ERRORS as error:
            kind = ObjectMissing if _code(error) in _MISSING else StorageUnavailable
            if kind is StorageUnavailable:
                PROCESS.count(STORAGE_ERRORS, verb.lower())
            raise kind(f"{verb} {key}: {self._where}: {_reason(error)}") from error


def _encryption(settings: S3Settings) -> dict[str, Any]:
    """Return the encryption parameters of every PUT; only the store can check their values."""
    parameters = {"ServerSideEncryption": settings.sse, "SSEKMSKeyId": settings.sse_kms_key_id}
    return {name: value for name, value in parameters.items() if value}


def _filename(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", key)


def _status(error: exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Exception) -> str:
    """Return the store's word for a failure; empty if the store did not answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, exceptions.ClientError) else ""


def _is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    if isinstance(error, exceptions.ClientError):
        status = _status(error)
        return _code(error) in _TRANSIENT_CODES or status == 429 or (status >= 500 and status != 501)
    return isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, exceptions.SSLError)


def _reason(error: Exception) -> str:
    """Return a description of the failure."""
    # The server's text is quoted and cut, because it comes from outside.
    if not isinstance(error, exceptions.ClientError):
        return str(error)[:500]
    details = error.response.get("Error", {})
    return f"{_status(error)} {details.get('Code', '')[:80]!r} {details.get('Message', '')[:300]!r}"


def _log_retry(verb: str, state: RetryCallState) -> None:
    PROCESS.count(STORAGE_ERRORS, verb.lower())
    error = state.outcome.exception() if state.outcome else None
    logger.warning(
        "storage request failed; retrying",
        extra={"attempt": state.attempt_number, "error": repr(error)[:500], "wait_s": round(state.upcoming_sleep, 2)},
    )
