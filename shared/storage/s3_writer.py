"""Write a large object to an S3-compatible bucket as a multipart upload, with one part in memory at a time."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from boto3.s3.transfer import TransferConfig

from shared.errors import ObjectMissing
from shared.storage.protocol import MAX_PIECES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

# The store answers a copy when it has ended: a part of this size takes it seconds, far less than a read timeout.
_COPY_PART_BYTES = 256 * 1024**2


class Caller(Protocol):
    """Sends a request, repeats it if it may succeed later, and raises `StorageUnavailable`."""

    def __call__(self, verb: str, key: str, request: Callable[[], T], /) -> T: ...


class S3Writer:
    """An `ObjectWriter`. Until `finish`, the bucket has an incomplete multipart upload and no object.

    Args:
        key: where the object will be; `finish` copies it if it gets another key.
        find_name: returns the name in the bucket of a key.
        parameters: content type and encryption of the object.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        key: str,
        *,
        find_name: Callable[[str], str],
        parameters: Mapping[str, Any],
        call: Caller,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._find_name = find_name
        self._name = find_name(key)
        self._parameters = parameters
        self._call = call
        self._upload_id = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._size_bytes = 0
        self._has_copy_source = False

    def write(self, piece: bytes) -> None:
        number = len(self._parts) + 1
        if number > MAX_PIECES:
            raise ValueError(f"an object has at most {MAX_PIECES} pieces")
        if not self._upload_id:
            self._upload_id = self._call("POST", self._key, self._begin)
        tag = self._call("PUT", self._key, lambda: self._put_part(number, piece))
        self._parts.append({"PartNumber": number, "ETag": tag})
        self._size_bytes += len(piece)

    def finish(self, key: str) -> None:
        try:
            self._call("POST", self._key, self._complete)
        except ObjectMissing:
            # A repeat after a lost answer: the upload is complete, so it does not exist any more.
            if self._call("HEAD", self._key, self._stored_bytes) != self._size_bytes:
                raise
        self._upload_id = ""
        if key != self._key:
            self._has_copy_source = True
            self._call("COPY", key, lambda: self._copy(self._find_name(key)))
            self.abort()

    def abort(self) -> None:
        if self._upload_id:
            self._call("DELETE", self._key, self._drop_parts)
            self._upload_id = ""
        if self._has_copy_source:
            self._call("DELETE", self._key, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._name))
            self._has_copy_source = False

    def _begin(self) -> str:
        return self._client.create_multipart_upload(Bucket=self._bucket, Key=self._name, **self._parameters)["UploadId"]

    def _put_part(self, number: int, piece: bytes) -> str:
        # S3's oldest integrity check, which every compatible store performs.
        digest = base64.b64encode(hashlib.md5(piece, usedforsecurity=False).digest()).decode()
        return self._client.upload_part(
            Bucket=self._bucket,
            Key=self._name,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=piece,
            ContentMD5=digest,
        )["ETag"]

    def _complete(self) -> None:
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=self._name, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
        )

    def _stored_bytes(self) -> int:
        return self._client.head_object(Bucket=self._bucket, Key=self._name)["ContentLength"]

    def _copy(self, name: str) -> None:
        # In this thread: an upload must not take more connections than one.
        config = TransferConfig(
            multipart_threshold=_COPY_PART_BYTES, multipart_chunksize=_COPY_PART_BYTES, use_threads=False
        )
        # A copy in parts does not inherit the content type.
        extra = {**self._parameters, "MetadataDirective": "REPLACE"}
        self._client.copy(
            {"Bucket": self._bucket, "Key": self._name}, self._bucket, name, ExtraArgs=extra, Config=config
        )

    def _drop_parts(self) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._name, UploadId=self._upload_id)
        except self._client.exceptions.NoSuchUpload:
            # A repeat after a lost answer.
            return
