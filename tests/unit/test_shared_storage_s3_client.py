"""Clients of S3 share what botocore reads from its own files, and nothing else."""

import pytest
from botocore.loaders import JSONFileLoader

from shared.settings import S3Settings
from shared.storage.s3_client import make_client

SETTINGS = S3Settings(endpoint_url="http://127.0.0.1:9", bucket="images")


@pytest.fixture
def make():
    """Make a client with a key of this name."""

    def make(key):
        credentials = {"aws_access_key_id": key, "aws_secret_access_key": "secret"}
        return make_client(SETTINGS, endpoint_url=SETTINGS.endpoint_url, credentials=credentials)

    return make


def test_a_second_client_reads_no_description_again(make, monkeypatch):
    make("first")
    read = []
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: read.append(path))

    client = make("second")

    assert read == []
    assert "X-Amz-Credential=second" in client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})


def test_a_folder_of_own_descriptions_is_read(make, monkeypatch, tmp_path):
    make("first")
    read = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda own, path: read.append(path) or load(own, path))
    monkeypatch.setenv("AWS_DATA_PATH", f"{tmp_path}:~/models")

    make("second")

    assert any(path.startswith(str(tmp_path)) for path in read)
