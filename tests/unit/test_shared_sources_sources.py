"""Each kind of source is opened within the operator's limits on time and hosts."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from shared.errors import SourceUnavailable
from shared.network.guarded_client import GuardedClient
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
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


@pytest.fixture
def dripping_server():
    """Return the address of a server that sends an answer in pieces of a few bytes, one each 0.1 s."""

    def answer(connection):
        with suppress(OSError), connection:
            path = connection.recv(65_536).split()[1]
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"
            slow, fast = (head, b"") if path == b"/head" else (b"x" * 20, head)
            connection.sendall(fast)
            for place in range(0, len(slow), 2):
                time.sleep(0.1)  # a slow host
                connection.sendall(slow[place : place + 2])

    def serve(server):
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=[server.accept()[0]]).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=[server], daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_slow_body_has_the_time_of_a_download_and_a_slow_head_has_not(dripping_server):
    private = PrivateHosts.parse(dripping_server)
    client = GuardedClient(allowed_hosts=HostPatterns(()), private_hosts=private, headers=HostHeaders(), timeout_s=0.7)
    began = time.monotonic()

    with client.get(f"http://{dripping_server}/body", {}, total_s=30) as answer:
        assert b"".join(answer.chunks) == b"x" * 20
    assert time.monotonic() - began > 0.9

    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match="took too long to answer"):
        client.get(f"http://{dripping_server}/head", {}, total_s=30).__enter__()
    assert time.monotonic() - began < 1.8  # the whole head takes 2 s


def test_the_hub_may_redirect_to_the_hosts_that_the_operator_allows(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example.com")
    sources = Sources(Settings(sources=SourcesSettings(https_hosts="files.example.com")))

    guard = sources._hub_client._guard

    for host in ("mirror.example.com", "files.example.com", "cdn-lfs.hf.co"):
        assert guard.check(f"https://{host}/robot.safetensors").host == host
