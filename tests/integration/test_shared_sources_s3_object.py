"""Files in S3-compatible storage: read by ranges from a real store, under a pin that other bytes never satisfy."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from mypy_boto3_s3 import S3Client

from shared.errors import AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable
from shared.local.s3_server import S3Server
from shared.sources.remote_file import MAX_CHUNK, Pin
from shared.sources.s3_object import open_s3_object
from shared.sources.source import S3Object

_EMPTY = hashlib.sha256().hexdigest()
_DATA = random.Random(1).randbytes(3_000_000)


def _make_client(url: str, *, key: str, secret: str) -> S3Client:
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=2)
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


@pytest.fixture
def client(s3_server: S3Server) -> S3Client:
    found = s3_server.environment()
    return _make_client(s3_server.url, key=found["AWS_ACCESS_KEY_ID"], secret=found["AWS_SECRET_ACCESS_KEY"])


@pytest.fixture
def source(client: S3Client, s3_server: S3Server) -> Iterator[S3Object]:
    """An object without a stated sha256, in a bucket without versions."""
    source = S3Object(s3_server.bucket, "loras/my robot.safetensors")
    client.put_object(Bucket=source.bucket, Key=source.key, Body=_DATA)
    yield source
    client.delete_object(Bucket=source.bucket, Key=source.key)


def test_an_object_is_read_by_ranges_and_streamed_from_any_place(client: S3Client, source: S3Object) -> None:
    file = open_s3_object(client, source)

    assert file.name == f"s3://{source.bucket}/loras/my robot.safetensors"
    assert file.size_bytes == len(_DATA)
    assert file.pin.kind == "etag"
    assert file.read(0, 8) == _DATA[:8]
    assert file.read(1_000_000, 3_000_000) == _DATA[1_000_000:]
    for start in (0, 2_999_999, 3_000_000):
        chunks = list(file.stream(start))
        assert b"".join(chunks) == _DATA[start:]
        assert all(len(chunk) <= MAX_CHUNK for chunk in chunks)


def test_an_object_that_is_replaced_is_never_read_under_the_old_pin(client: S3Client, source: S3Object) -> None:
    file = open_s3_object(client, source)
    client.put_object(Bucket=source.bucket, Key=source.key, Body=bytes(len(_DATA)))

    with pytest.raises(SourceChanged, match="is no longer the object that the job named; submit the job again"):
        file.read(0, 8)
    with pytest.raises(SourceChanged):
        list(file.stream(0))
    with pytest.raises(SourceChanged):
        open_s3_object(client, source, pin=file.pin)
    assert open_s3_object(client, source).pin != file.pin


def test_a_pinned_object_is_opened_again(client: S3Client, source: S3Object) -> None:
    pin = open_s3_object(client, source).pin
    again = open_s3_object(client, source, pin=Pin.parse(str(pin)))
    assert again.pin == pin
    assert again.read(5, 9) == _DATA[5:9]


def test_an_object_of_a_bucket_with_versions_keeps_its_bytes(client: S3Client, s3_server: S3Server) -> None:
    source = S3Object("versions", "robot.safetensors")
    client.create_bucket(Bucket=source.bucket)
    client.put_bucket_versioning(Bucket=source.bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=source.bucket, Key=source.key, Body=b"first")
    file = open_s3_object(client, source)
    client.put_object(Bucket=source.bucket, Key=source.key, Body=b"second")

    assert file.pin.kind == "version"
    assert file.read(0, 5) == b"first"
    assert b"".join(open_s3_object(client, source, pin=file.pin).stream(0)) == b"first"
    assert open_s3_object(client, source).read(0, 6) == b"second"

    client.delete_object(Bucket=source.bucket, Key=source.key, VersionId=file.pin.value)
    with pytest.raises(SourceChanged, match="the version that the job named was deleted"):
        file.read(0, 5)


def test_a_missing_object_and_a_missing_bucket_are_named(client: S3Client, source: S3Object) -> None:
    with pytest.raises(AdapterNotFound, match=r"s3://flux2/loras/none.safetensors: the store has no such object"):
        open_s3_object(client, S3Object(source.bucket, "loras/none.safetensors"))
    with pytest.raises(AdapterNotFound, match="s3://no-such-bucket/a"):
        open_s3_object(client, S3Object("no-such-bucket", "a"))


def test_wrong_credentials_are_named(s3_server: S3Server, source: S3Object) -> None:
    stranger = _make_client(s3_server.url, key="wrong", secret="wrong")
    with pytest.raises(AdapterRefused, match="the service's AWS credentials may not read it") as caught:
        open_s3_object(stranger, source)
    assert caught.value.field == "path"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (301, "PermanentRedirect", AdapterRefused),
        (400, "InvalidBucketName", AdapterRefused),
        (400, "RequestTimeout", SourceUnavailable),
        (400, "ExpiredToken", SourceUnavailable),
        (429, "TooManyRequests", SourceUnavailable),
        (503, "SlowDown", SourceUnavailable),
    ],
)
def test_only_answers_that_may_change_are_asked_for_again(
    source: S3Object, status: int, code: str, error: type[Exception]
) -> None:
    class Answering:
        def head_object(self, **_: object) -> None:
            facts = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(facts, "HeadObject")  # type: ignore[arg-type]

    with pytest.raises(error, match=f"the store answers {status} '{code}'"):
        open_s3_object(Answering(), source)  # type: ignore[arg-type]


def test_a_store_that_is_away_can_be_asked_again(source: S3Object) -> None:
    away = _make_client("http://127.0.0.1:9", key="any", secret="any")
    with pytest.raises(SourceUnavailable, match="the store does not answer") as caught:
        open_s3_object(away, source)
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("facts", "sha256"),
    [
        # AWS' answer about an object of one part; SeaweedFS keeps no such checksum.
        ({"ChecksumSHA256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "ChecksumType": "FULL_OBJECT"}, _EMPTY),
        ({"ChecksumSHA256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}, _EMPTY),
        # The digest of the parts' digests.
        ({"ChecksumSHA256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=-2", "ChecksumType": "COMPOSITE"}, None),
        ({"ChecksumSHA256": "no base64"}, None),
        ({"ChecksumSHA256": "c2hvcnQ="}, None),
        ({}, None),
    ],
)
def test_the_sha256_of_a_whole_object_is_taken_from_the_store(facts: dict[str, str], sha256: str | None) -> None:
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any")
    with Stubber(client) as stubber:
        stubber.add_response("head_object", {"ContentLength": 0, "ETag": '"e"', **facts})
        assert open_s3_object(client, S3Object("bucket", "key")).sha256 == sha256
