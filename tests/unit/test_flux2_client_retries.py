"""The client repeats calls that may succeed later, waits as long as it is asked to, and gives up at its deadline."""

import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from flux2_client import client as client_module
from flux2_client import outages, protocol, retries
from flux2_client.answers import parse_retry_after
from flux2_client.async_client import AsyncClient
from flux2_client.client import Client
from flux2_client.outages import RetryMessages
from shared.errors import ApiError, ApiUnreachable
from shared.local.ports import pick_free_port

# With the fields of every answer that these tests read.
STATUS = (
    b'{"request_id": "1", "status": "succeeded", "model": "flux2", "progress": 1.0, "items": [], "created_at": "",'
    b' "status_url": "", "result_url": "", "requests": [], "samples": []}'
)
PROBLEM = b'{"code": "ledger_unavailable", "detail": "Redis did not answer"}'


class Api(ThreadingHTTPServer):
    """Answers each request with the next entry of `script`: a status with headers, or None to hang up."""

    def __init__(self, *, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.script = []
        self.requests = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, self.headers.get("Idempotency-Key")))
        step = self.server.script.pop(0) if self.server.script else (200, {})
        if step is None:
            return
        status, headers = step
        body = STATUS if status < 400 else PROBLEM
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = Api()
    yield server
    server.close()


class Clock:
    """Replaces the modules' `time`: it moves only when the code sleeps."""

    def __init__(self):
        self.now_s = 1000.0
        self.slept_s: list[float] = []
        self.during_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds):
        self.during_sleep()
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in (retries, protocol, client_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now_s, sleep=made.sleep))
    return made


def test_a_submit_is_repeated_with_its_key_until_it_is_answered(api, clock):
    api.script = [None, (503, {"Retry-After": "2"}), (429, {"Retry-After": "30"}), (502, {}), (202, {})]

    with Client(api.url, retry_s=600) as client:
        client.submit({"prompts": ["a"]})
        client.submit_replay("config: {}")

    keys = [key for _, path, key in api.requests if path == "/v1/inference"]
    assert len(keys) == 5
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert api.requests[-1][2] not in (None, keys[0])
    assert 2 <= clock.slept_s[1] <= 2.5
    assert 30 <= clock.slept_s[2] <= 30.5


def test_a_callers_own_key_is_sent(api):
    with Client(api.url) as client:
        client.submit({}, idempotency_key="mine")
        client.submit_replay("", idempotency_key="mine too")

    assert [key for *_, key in api.requests] == ["mine", "mine too"]


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_refused_call_is_not_repeated(api, clock, status):
    api.script = [(status, {})]

    with Client(api.url) as client, pytest.raises(ApiError, match="ledger_unavailable: Redis did not answer"):
        client.submit({})

    assert len(api.requests) == 1


def test_the_waits_grow_to_half_a_minute_and_end_at_the_deadline(api, clock):
    api.script = [(503, {})] * 100
    failures = []

    with Client(api.url, retry_s=120, on_failure=failures.append) as client, pytest.raises(ApiError):
        client.status("1")

    assert sum(clock.slept_s) == pytest.approx(120)
    assert all(
        bound / 2 <= slept <= bound for slept, bound in zip(clock.slept_s, (0.5, 1, 2, 4, 8, 16, 30), strict=False)
    )
    assert len(failures) == len(clock.slept_s) == len(api.requests) - 1


def test_a_wait_goes_on_through_errors_until_its_own_deadline(api, clock):
    api.script = [(503, {"Retry-After": "3600"})] * 5 + [None, (504, {})]

    with Client(api.url, retry_s=0) as client:
        status = client.wait("1", timeout_s=86_400)

    assert status.status == "succeeded"
    assert len(api.requests) == 8


def test_a_wait_whose_api_stays_away_ends_at_its_deadline(api, clock):
    api.script = [(503, {"Retry-After": "3600"})] * 100

    with Client(api.url, retry_s=0) as client, pytest.raises(ApiError, match="ledger_unavailable"):
        client.wait("1", timeout_s=86_400)

    assert sum(clock.slept_s) == pytest.approx(86_400)


def test_an_error_of_the_caller_ends_the_repeats(api, clock):
    api.script = [(503, {})] * 10

    def stop(_):
        raise KeyboardInterrupt

    with Client(api.url, on_failure=stop) as client, pytest.raises(KeyboardInterrupt):
        client.wait("1", timeout_s=60)

    assert len(api.requests) == 1


def test_an_address_that_never_answered_is_reported_at_once(clock):
    with Client(f"http://127.0.0.1:{pick_free_port()}") as client, pytest.raises(ApiError, match="cannot be reached"):
        client.submit({})

    assert clock.slept_s == []


@pytest.mark.parametrize(
    "url", ["", "no-scheme:1", "ftp://a", "http://", "http://a:99999", "http://[::1", "http://a:x"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_cannot_be_an_address_is_refused_before_a_call(kind, url):
    with pytest.raises(ApiUnreachable, match="is no address of an API; write it like http://"):
        kind(url)


def test_an_api_that_restarts_is_waited_for(api, clock):
    with Client(api.url) as client:
        client.status("1")
        port = api.server_port
        api.close()
        started = []
        clock.during_sleep = lambda: started or started.append(Api(port=port))

        answer = client.status("1")

    assert answer.status == "succeeded"
    started[0].close()


def test_a_download_is_repeated_while_the_store_is_away(api, clock):
    api.script = [(503, {"Retry-After": "1"}), None, (500, {}), (200, {})]

    with Client("http://127.0.0.1:1") as client:
        data = client.download(f"{api.url}/file.png?signature")

    assert data == STATUS
    assert len(api.requests) == 4


def test_an_outage_of_the_store_is_said_once_for_all_images(clock, monkeypatch):
    said = []
    monkeypatch.setattr(outages.time, "monotonic", lambda: clock.now_s)
    url = f"http://127.0.0.1:{pick_free_port()}"

    with Client("http://127.0.0.1:1", retry_s=60, on_failure=RetryMessages(said.append)) as client:
        for name in ("a", "b"):
            with pytest.raises(ApiUnreachable, match="FLUX2_S3_PUBLIC_ENDPOINT_URL"):
                client.download(f"{url}/{name}.png?signature")
        clock.now_s += 3600
        with pytest.raises(ApiUnreachable):
            client.download(f"{url}/a.png?signature")

    assert len(said) == 2
    assert said[0].startswith(f"trying again: the store at {url.removeprefix('http://')} cannot be reached")
    assert "signature" not in said[0]


def test_the_body_of_a_redirect_is_not_an_image(api):
    api.script = [(307, {"Location": "/elsewhere"})]

    with Client("http://127.0.0.1:1") as client, pytest.raises(ApiError, match=r"/file.png: 307 Temporary Redirect"):
        client.download(f"{api.url}/file.png?signature")

    assert len(api.requests) == 1


def test_retry_after_is_a_number_of_seconds_or_a_date():
    assert parse_retry_after("7") == 7
    assert 55 < parse_retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after("soon") is None
    assert parse_retry_after("") is None
    assert parse_retry_after("Mon, 01 Jan 99999999999 00:00:00 GMT") is None
