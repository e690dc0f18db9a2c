"""A file on a web server: one request opens it, and later reads give the same bytes or fail."""

import contextlib
import hashlib
import re
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shared.errors import AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable
from shared.network.guarded_client import GuardedClient
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.sources.https_file import open_https
from shared.sources.ranged_reader import RangedReader
from shared.sources.remote_file import Pin
from shared.sources.source import HttpsFile

DATA = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(DATA).hexdigest()


class Shelf(ThreadingHTTPServer):
    """Serves one file by ranges, and keeps the `Range` and `If-Match` of each request.

    Attributes:
        statuses: statuses of the next answers, before the file is served.
    """

    daemon_threads = True

    def __init__(self, data=DATA, etag='"v1"'):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.etag = etag
        self.statuses = []
        self.honours_conditions = True
        self.requests = []

    @property
    def file(self):
        return HttpsFile(f"http://127.0.0.1:{self.server_port}/a/robot.safetensors?type=Model")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shelf, headers = self.server, self.headers
        shelf.requests.append((headers["Range"], headers["If-Match"]))
        if shelf.statuses:
            return self.answer(shelf.statuses.pop(0))
        if shelf.honours_conditions and headers["If-Match"] not in (None, shelf.etag):
            return self.answer(412)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", headers["Range"]).groups()
        start, end = int(first), min(len(shelf.data), int(last) + 1 if last else len(shelf.data))
        if start >= len(shelf.data):
            return self.answer(416)
        extent = f"bytes {start}-{end - 1}/{len(shelf.data)}"
        return self.answer(206, shelf.data[start:end], Content_Range=extent, ETag=shelf.etag)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(serve_http):
    return serve_http(Shelf())


def make_client(port):
    """Return a client for which one port of this host is one of the operator's own hosts."""
    return GuardedClient(
        allowed_hosts=HostPatterns(()),
        private_hosts=PrivateHosts().adding("127.0.0.1", port),
        headers=HostHeaders(),
        timeout_s=5,
    )


@pytest.fixture
def opened(shelf):
    return lambda pin=None: open_https(make_client(shelf.server_port), shelf.file, download_s=5, pin=pin)


def test_one_request_opens_a_file_and_reads_its_header(shelf, opened):
    file = opened()

    assert (file.size_bytes, file.sha256, file.pin) == (len(DATA), None, Pin("etag", '"v1"'))
    assert RangedReader(file).read(1000) == DATA[:1000]
    assert shelf.requests == [("bytes=0-131071", None)]


def test_a_read_and_a_stream_give_exactly_the_bytes_of_the_pinned_file(shelf, opened):
    file = opened(Pin("etag", '"v1"'))

    assert file.read(200_000, 200_007) == DATA[200_000:200_007]
    assert file.read(200_000, 200_000) == b""
    assert b"".join(file.stream(0)) == DATA
    assert b"".join(file.stream(999_999)) == DATA[999_999:]
    assert b"".join(file.stream(len(DATA))) == b""
    assert shelf.requests == [
        ("bytes=0-131071", '"v1"'),
        ("bytes=200000-200006", '"v1"'),
        ("bytes=0-", '"v1"'),
        ("bytes=999999-", '"v1"'),
    ]


def test_a_file_smaller_than_the_first_read_is_whole(shelf, opened):
    shelf.data = b"tiny"

    file = opened()

    assert file.read(0, 4) == b"tiny"
    assert b"".join(file.stream(1)) == b"iny"


@pytest.mark.parametrize("honours_conditions", [True, False])
def test_another_etag_is_a_change_also_on_a_host_that_ignores_conditions(shelf, opened, honours_conditions):
    file = opened()
    shelf.etag, shelf.honours_conditions = '"v2"', honours_conditions

    for read in (lambda: file.read(200_000, 200_001), lambda: list(file.stream(0)), lambda: opened(file.pin)):
        with pytest.raises(SourceChanged, match="has another file there than when the job was accepted"):
            read()


def test_another_size_is_a_change(shelf, opened):
    file = opened(Pin("sha256", DIGEST))
    shelf.data = DATA[:-1]

    with pytest.raises(SourceChanged):
        list(file.stream(0))


@pytest.mark.parametrize("etag", [None, 'W/"v1"', "v1", '""', '"a"b"'])
def test_a_file_without_a_strong_etag_needs_the_callers_digest(shelf, opened, etag):
    shelf.etag = etag

    with pytest.raises(AdapterRefused, match=r"states no strong ETag, .* add the file's `sha256` to the request"):
        opened()
    file = opened(Pin("sha256", DIGEST))

    assert (file.sha256, file.pin) == (DIGEST, Pin("sha256", DIGEST))
    assert hashlib.sha256(b"".join(file.stream(0))).hexdigest() == DIGEST


def test_a_file_with_the_callers_digest_may_have_another_etag_at_each_store(shelf, opened):
    file = opened(Pin("sha256", DIGEST))
    shelf.etag = '"of another store"'

    assert b"".join(file.stream(0)) == DATA


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (
            401,
            AdapterNotFound,
            "answered 401; if .* a login, the operator sets FLUX2_SOURCES_HTTPS_HEADERS",
        ),
        (403, AdapterNotFound, "answered 403"),
        (404, AdapterNotFound, "answered 404; check the link"),
        (410, AdapterNotFound, "answered 410"),
        (416, AdapterRefused, "empty or shorter"),
        (400, AdapterRefused, "answered 400"),
        (204, AdapterRefused, "answered 204"),
        (304, AdapterRefused, "answered 304"),
    ],
)
def test_a_refusal_says_what_the_host_answered_and_what_to_do(shelf, opened, status, kind, message):
    shelf.statuses = [status]

    with pytest.raises(kind, match=message) as refused:
        opened()

    assert str(refused.value).startswith(f"http://127.0.0.1:{shelf.server_port}/a/robot.safetensors: ")
    assert refused.value.field == "path"
    assert len(shelf.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 425])
def test_a_host_that_fails_is_asked_again(shelf, opened, status, monkeypatch):
    pauses = []
    monkeypatch.setattr("shared.sources.http_ranges.time.sleep", pauses.append)
    shelf.statuses = [status, status]

    assert opened().read(0, 3) == DATA[:3]

    shelf.statuses = [status] * 3
    with pytest.raises(SourceUnavailable, match=f"answered {status}; try again later"):
        opened()
    assert pauses == [0.2, 0.8] * 2


def test_a_host_that_is_away_is_unavailable():
    # Bound and not listening: connections are refused.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(SourceUnavailable, match="cannot be connected to"):
            open_https(make_client(port), HttpsFile(f"http://127.0.0.1:{port}/x"), download_s=5)


def test_a_pin_is_written_and_read_back():
    for pin in (Pin("etag", '"a:b"'), Pin("sha256", DIGEST), Pin("commit", "0" * 40), Pin("version", "x.y:z")):
        assert Pin.parse(str(pin)) == pin
    for text in ("", "etag", "etag:", "weak:x", '"v1"'):
        with pytest.raises(ValueError, match="is not a pin"):
            Pin.parse(text)
