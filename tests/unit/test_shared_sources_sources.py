"""Each kind of source is opened within the operator's limits on time and hosts."""

from __future__ import annotations

import socket
import time

import pytest

from shared.errors import SourceUnavailable
from shared.settings import S3Settings, Settings, SourcesSettings
from shared.sources.source import S3Object
from shared.sources.sources import Sources


@pytest.fixture
def silent_server():
    """Return the port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as server:
        yield server.getsockname()[1]


def test_a_store_that_does_not_answer_has_the_time_of_a_source_not_of_an_upload(silent_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    s3 = S3Settings(endpoint_url=f"http://127.0.0.1:{silent_server}", timeout_s=30.0)
    sources = Sources(Settings(s3=s3, sources=SourcesSettings(timeout_s=0.2)))
    began = time.monotonic()

    with pytest.raises(SourceUnavailable, match="the store does not answer"):
        sources.open(S3Object("flux2", "robot.safetensors"))

    # Two attempts, a pause of at most a second between them.
    assert time.monotonic() - began < 10


def test_the_hub_may_redirect_to_the_hosts_that_the_operator_allows(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example.com")
    sources = Sources(Settings(sources=SourcesSettings(https_hosts="files.example.com")))

    guard = sources._hub_client._guard

    for host in ("mirror.example.com", "files.example.com", "cdn-lfs.hf.co"):
        assert guard.check(f"https://{host}/robot.safetensors").host == host
