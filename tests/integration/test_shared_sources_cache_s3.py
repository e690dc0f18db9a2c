"""A worker's cache gets files from a real S3, whose objects state no sha256."""

import random

import pytest

from shared.errors import SourceChanged
from shared.job import AdapterRef
from shared.sources.source import parse_source
from shared.sources.sources import Sources
from worker.consumer.adapter_files import open_adapter_files

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def bucket(s3, s3_server, settings, tmp_path):
    """Settings with a cache in this test's folder, and a function that stores an object and returns its address."""
    made = settings(s3=s3.s3.model_dump(), sources={"cache_dir": tmp_path / "cache"})
    client = Sources(made)._s3_client

    def put(data):
        client.put_object(Bucket=s3_server.bucket, Key="loras/my robot.safetensors", Body=data)
        return f"s3://{s3_server.bucket}/loras/my robot.safetensors"

    return made, put


def accepted(settings, address):
    """The reference of a file as a submit would pin it."""
    file = Sources(settings).open(parse_source(address))
    return AdapterRef(path=address, sha256="", size_bytes=file.size_bytes, multiplier=1.0, pin=str(file.pin))


def test_an_object_is_downloaded_once_and_keeps_its_bytes_after_it_was_replaced(bucket, item):
    settings, put = bucket
    ref = accepted(settings, put(DATA))
    spec = item(adapters=(ref,))
    with open_adapter_files(settings).open(spec, on_fetch=lambda: None) as files:
        assert files.paths[0].read_bytes() == DATA
    put(bytes(len(DATA)))

    with open_adapter_files(settings).open(spec, on_fetch=lambda: None) as files:
        assert files.paths[0].read_bytes() == DATA


def test_an_object_that_was_replaced_before_its_download_gives_no_other_bytes(bucket, item):
    settings, put = bucket
    ref = accepted(settings, put(DATA))
    put(bytes(len(DATA)))

    with (
        pytest.raises(SourceChanged, match="is no longer the object that the job named; submit the job again"),
        open_adapter_files(settings).open(item(adapters=(ref,)), on_fetch=lambda: None),
    ):
        pass
