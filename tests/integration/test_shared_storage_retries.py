"""The S3 store against a failing endpoint: a real HTTP server with scripted answers."""

import base64
import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shared.errors import StorageUnavailable
from shared.metrics.tally import PROCESS
from shared.storage import open_store

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
KEY = "results/job-1/1/0.png"

OK = (200, "")
SLOW_DOWN = (503, ERROR.format("SlowDown", "Reduce your request rate"))
TOO_MANY = (429, "")
BAD_GATEWAY = (502, "<html>bad gateway</html>")
DENIED = (403, ERROR.format("AccessDenied", "Access Denied"))
NO_BUCKET = (404, ERROR.format("NoSuchBucket", "The specified bucket does not exist"))
NOT_IMPLEMENTED = (501, ERROR.format("NotImplemented", "A header implies functionality that is not implemented"))
HANG_UP = (0, "")
HANG = (-1, "")


class Endpoint(ThreadingHTTPServer):
    """Answers each request with the next of `script`, and with its last one ever after."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.requests = []
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request, client_address):
        """A client that gave up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        # botocore sends PUT bodies after "100 Continue", which the base class answers.
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, text = self.server.answer()
        if status == -1:
            self.server.closing.wait(30)
        if status <= 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(serve_http):
    """Start endpoints by script."""
    return lambda *script: serve_http(Endpoint(script))


@pytest.fixture
def store_at(settings, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def open_at(url, *, budget_s=20.0, **s3):
        return open_store(
            settings(
                s3={"endpoint_url": url, "bucket": "flux2", "timeout_s": 0.5, **s3},
                storage={"retry_budget_s": budget_s},
            )
        )

    return open_at


def put(store):
    store.put(KEY, b"image", content_type="image/png")


@pytest.mark.parametrize(
    "failure",
    [SLOW_DOWN, TOO_MANY, BAD_GATEWAY, HANG_UP, HANG],
    ids=["503 SlowDown", "429", "502 HTML", "hang-up", "timeout"],
)
def test_a_put_survives_transient_failures(endpoint, store_at, failure):
    server = endpoint(failure, failure, failure, OK)

    put(store_at(server.url))

    assert len(server.requests) == 4
    assert {body for _, _, body in server.requests} == {b"image"}


def test_failed_requests_count_by_operation_also_those_that_are_repeated(endpoint, store_at):
    # The client repeats a request at once, and the store counts when both have failed.
    server = endpoint(SLOW_DOWN, SLOW_DOWN, OK, DENIED)
    store = store_at(server.url)
    PROCESS.take()

    put(store)
    with pytest.raises(StorageUnavailable):
        store.get(KEY)

    assert PROCESS.take() == {"storage_errors|put": 1, "storage_errors|get": 1}


def test_a_put_that_keeps_failing_gives_up_when_its_budget_is_spent(endpoint, store_at):
    server = endpoint(SLOW_DOWN)
    store = store_at(server.url, budget_s=2)
    started = time.monotonic()

    with pytest.raises(
        StorageUnavailable, match=r"PUT results/job-1/1/0.png: bucket 'flux2' at .* 503 'SlowDown'"
    ) as failed:
        put(store)

    took_s = time.monotonic() - started
    assert took_s < 6
    assert len(server.requests) > 2
    assert failed.value.__cause__ is not None


@pytest.mark.parametrize("answer", [DENIED, NO_BUCKET, NOT_IMPLEMENTED], ids=["403", "404", "501"])
def test_a_put_that_cannot_succeed_is_tried_once(endpoint, store_at, answer):
    server = endpoint(answer)

    with pytest.raises(StorageUnavailable, match=f"bucket 'flux2' at {server.url}: {answer[0]} "):
        put(store_at(server.url))

    assert len(server.requests) == 1


def test_a_put_waits_for_an_endpoint_that_starts_late(store_at, serve_http):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outcome = []
    store = store_at(f"http://127.0.0.1:{port}")
    client = threading.Thread(target=lambda: outcome.append(put(store)))

    client.start()
    with pytest.raises(StorageUnavailable, match="Could not connect"):
        put(store_at(f"http://127.0.0.1:{port}", budget_s=0))
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.script, server.requests, server.answer = [OK], [], lambda: OK
    serve_http(server)
    client.join(20)

    assert outcome == [None]


def test_without_a_budget_only_botocores_own_retry_is_made(endpoint, store_at):
    server = endpoint(SLOW_DOWN)

    with pytest.raises(StorageUnavailable):
        put(store_at(server.url, budget_s=0))

    assert len(server.requests) == 2


def test_the_check_does_not_wait_for_the_budget(endpoint, store_at):
    server = endpoint(SLOW_DOWN)
    started = time.monotonic()

    with pytest.raises(StorageUnavailable, match=r"PUT \.flux2-check/\w+/probe"):
        store_at(server.url, budget_s=60).check()

    assert time.monotonic() - started < 5


def test_a_servers_message_is_quoted_and_cut(endpoint, store_at):
    server = endpoint((403, ERROR.format("Denied", "no&#10;FAKE LOG LINE" + "x" * 10_000)))

    with pytest.raises(StorageUnavailable) as failed:
        put(store_at(server.url))

    assert "\n" not in str(failed.value)
    assert len(str(failed.value)) < 1000


def test_each_retry_is_logged(endpoint, store_at, caplog):
    server = endpoint(SLOW_DOWN, SLOW_DOWN, OK)

    put(store_at(server.url))

    records = [record for record in caplog.records if record.name == "flux2.storage"]
    assert [record.message for record in records] == ["storage request failed; retrying"]
    assert records[0].attempt == 1


def test_a_put_carries_its_type_its_digest_its_encryption_and_no_streaming_checksum(endpoint, store_at):
    server = endpoint(OK)

    put(store_at(server.url, sse="aws:kms", sse_kms_key_id="key-1"))

    path, headers, body = server.requests[0]
    assert path == f"/flux2/{KEY}"
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(body).digest()).decode()
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert not [name for name in headers if name.lower().startswith(("x-amz-checksum", "x-amz-trailer"))]
    assert body == b"image"
