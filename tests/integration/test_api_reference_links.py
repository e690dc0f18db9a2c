"""Reference images that other hosts keep: fetched once when the job is accepted, within bounds, and kept here."""

import base64
import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from shared.references import reference_key
from shared.storage.s3 import make_client

POOLS = ["flux2", "flux2+references"]


def drawn(color="red", kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (101, 87), color).save(file, kind)
    return file.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Gallery(ThreadingHTTPServer):
    """A web server that knows no ranges, as many image hosts; some of its paths are hostile.

    Attributes:
        files: bytes by path.
        seen: paths in the order of their requests.
        open_requests, most_open: number of requests that are being answered, and its maximum.
        closing: set at the end; silent answers then end.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {}
        self.seen = []
        self.open_requests = self.most_open = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def place(self):
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # the client hangs up on bodies that it does not want


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.seen.append(self.path)
            self.server.open_requests += 1
            self.server.most_open = max(self.server.most_open, self.server.open_requests)
        try:
            path = self.path.partition("?")[0]
            if path in self.server.files:
                self.answer(200, self.server.files[path])
            else:
                getattr(self, f"send_{path[1:]}", lambda: self.answer(404))()
        finally:
            with self.server.lock:
                self.server.open_requests -= 1

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunked_image(self):
        self.chunked()
        for byte in drawn():
            self.wfile.write(b"1\r\n" + bytes([byte]) + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def send_endless(self):
        self.chunked()
        while True:
            self.wfile.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")

    def send_claims_to_be_huge(self):
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()

    def send_short(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(bytes(50))
        self.close_connection = True

    def send_silence(self):
        self.server.closing.wait()

    def send_slow(self):
        time.sleep(0.2)
        self.answer(200, drawn(f"#0000{len(self.server.seen):02x}"))

    def send_page(self):
        self.answer(200, b"<html>log in", Content_Type="text/html")

    def send_login(self):
        self.answer(403)

    def send_busy(self):
        self.answer(429)

    def send_gzip(self):
        self.answer(200, bytes(100), Content_Encoding="gzip")

    def send_part(self):
        self.answer(206, bytes(100), Content_Range="bytes 0-99/200")

    def send_no_image(self):
        self.answer(200, b"hello", Content_Type="image/png")

    def log_message(self, *_):
        pass


@pytest.fixture
def gallery(serve_http):
    return serve_http(Gallery())


@pytest.fixture
def api_with(api, serve_api, gallery):
    """Serve the API with the gallery as the operator's own host, and changed settings; returns a context."""

    def make(sources=None, **references):
        places = {"private_hosts": gallery.place, "timeout_s": 1, **(sources or {})}
        changes = {
            "sources": type(api.settings.sources)(**places),
            "references": type(api.settings.references)(**references),
        }
        return serve_api(api.settings.model_copy(update=changes))

    return make


def post(api, *prompts, **headers):
    body = {"model": "flux2", "loras": [], "prompts": [{"prompt": "a", **prompt} for prompt in prompts]}
    return api.http.post("/v1/inference", json=body, headers=headers, timeout=60)


def accepted(api, *prompts, **headers):
    answer = post(api, *prompts, **headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def problem(answer, status, code):
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    return body


def claimed(api):
    """Return the sha256 of the references of the next item."""
    claim = api.ledger.claim_next(POOLS, slot="test", boot="test", warm="base")
    return [(ref.slot, ref.sha256) for ref in claim.spec.references]


def test_an_image_is_fetched_once_a_call_and_kept_under_its_content(api_with, gallery):
    red, blue = drawn("red"), drawn("blue", "JPEG")
    gallery.files = {"/red.png": red, "/blue": blue}
    url = f"http://{gallery.place}/red.png"

    with api_with() as api:
        accepted(api, {"ctrl_img": url}, {"ctrl_img": url, "ctrl_img_2": f"http://{gallery.place}/blue"}, {})
        gallery.files = {}

        assert claimed(api) == [(1, digest(red))]
        assert claimed(api) == [(1, digest(red)), (2, digest(blue))]
        assert api.store.get(reference_key(digest(red))) == red
    assert sorted(gallery.seen) == ["/blue", "/red.png"]


def test_a_repeat_with_the_same_key_fetches_nothing(api_with, gallery):
    gallery.files = {"/a.png": drawn()}
    prompt = {"ctrl_img": f"http://{gallery.place}/a.png"}

    with api_with() as api:
        first = accepted(api, prompt, **{"Idempotency-Key": "k"})
        gallery.files = {}
        again = accepted(api, prompt, **{"Idempotency-Key": "k"})

    assert again["request_id"] == first["request_id"]
    assert gallery.seen == ["/a.png"]


def test_an_image_may_come_in_chunks_without_a_stated_size(api_with, gallery):
    with api_with() as api:
        accepted(api, {"ctrl_img_3": f"http://{gallery.place}/chunked_image"})

        assert claimed(api) == [(3, digest(drawn()))]


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("gone.png", 422, "invalid_reference", "answered 404; check the link"),
        ("login", 422, "invalid_reference", "answered 403; if the file needs a login"),
        ("page", 422, "invalid_reference", "answered with a web page"),
        ("gzip", 422, "invalid_reference", "compresses the file"),
        ("part", 422, "invalid_reference", "answered with a part of the file"),
        ("no_image", 422, "invalid_reference", "is no image, or its beginning is damaged"),
        ("endless", 422, "invalid_reference", "FLUX2_REFERENCES_MAX_BYTES is 100,000"),
        ("claims_to_be_huge", 422, "invalid_reference", "1,000,000,000,000,000 bytes"),
        ("short", 503, "source_unavailable", "broke the connection"),
        ("silence", 503, "source_unavailable", "took too long to answer"),
        ("busy", 503, "source_unavailable", "answered 429; try again later"),
    ],
)
def test_what_a_host_answers_instead_of_an_image_is_said_with_the_field(api_with, gallery, path, status, code, message):
    with api_with(max_bytes=100_000) as api:
        body = problem(post(api, {}, {"ctrl_img_2": f"http://{gallery.place}/{path}?token=s3cret"}), status, code)

        assert message in body["detail"]
        assert "s3cret" not in str(body)
        assert [field["path"] for field in body["errors"]] == ["prompts[1].ctrl_img_2"]
        assert api.ledger.queue_length("flux2+references") == 0
        assert api.store.list_objects("references", limit=1) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://127.0.0.1/a.png", "from which this service takes no files"),
        ("https://example.com/a.png", "the operator allows hosts with FLUX2_REFERENCES_HTTPS_HOSTS"),
        ("http://localhost:1/a.png", "is not encrypted; use https://"),
        ("s3://another-bucket/a.png", "FLUX2_SOURCES_S3_BUCKETS"),
    ],
)
def test_a_place_that_the_operator_does_not_allow_is_refused(api_with, url, message):
    with api_with(https_hosts="files.example") as api:
        body = problem(post(api, {"ctrl_img": url}), 422, "invalid_reference")

    assert message in body["detail"]


@pytest.mark.parametrize("url", ["https://127.0.0.1/a.png", "https://10.0.0.1/a.png", "https://localhost/a.png"])
def test_without_a_list_of_hosts_every_public_address_is_allowed_and_no_other(api_with, url):
    with api_with() as api:
        assert str(api.settings.references.https_hosts) == "*"
        problem(post(api, {"ctrl_img": url}), 422, "invalid_reference")


def test_an_air_gapped_service_takes_images_from_the_request_alone(api_with, gallery):
    gallery.files = {"/a.png": drawn()}

    with api_with(sources={"local_only": True}) as api:
        body = problem(post(api, {"ctrl_img": f"http://{gallery.place}/a.png"}), 422, "invalid_reference")

    assert "FLUX2_SOURCES_LOCAL_ONLY allows no files of other hosts" in body["detail"]
    assert gallery.seen == []


def test_an_image_may_be_an_object_of_the_services_bucket_or_a_file_on_the_hub(api_with, hub):
    red, blue = drawn("red"), drawn("blue")
    hub.push("ann/robots", {"in/red.png": red})

    with api_with(sources={"private_hosts": hub.store_place}) as api:
        s3 = api.settings.s3
        client = make_client(s3, endpoint_url=s3.endpoint_url, credentials={})
        key = f"{api.settings.storage.prefix}given/blue.png"
        client.put_object(Bucket=s3.bucket, Key=key, Body=blue)

        accepted(api, {"ctrl_img": "hf://ann/robots/in/red.png", "ctrl_img_2": f"s3://{s3.bucket}/{key}"})

        assert claimed(api) == [(1, digest(red)), (2, digest(blue))]
        body = problem(post(api, {"ctrl_img": f"s3://{s3.bucket}/{key}x"}), 422, "invalid_reference")
        assert "the store has no such object" in body["detail"]


def test_the_images_of_a_call_are_fetched_four_at_a_time(api_with, gallery):
    prompts = [{"ctrl_img": f"http://{gallery.place}/slow?{number}"} for number in range(12)]

    with api_with() as api:
        accepted(api, *prompts)

    assert gallery.most_open == 4


def test_hosts_that_do_not_answer_hold_up_neither_polls_nor_submits_without_links(api_with, gallery):
    # More than there are turns for calls with links, and more than there are threads for polls.
    hostile = [{"ctrl_img": f"http://{gallery.place}/silence"}]

    with api_with(sources={"timeout_s": 5}) as api, ThreadPoolExecutor(48) as pool:
        answers = [pool.submit(post, api, *hostile) for _ in range(48)]
        deadline = time.monotonic() + 10
        while gallery.open_requests < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gallery.open_requests == 8
        started = time.monotonic()
        inline = accepted(api, {"ctrl_img": "data:;base64," + base64.b64encode(drawn()).decode()})
        assert api.http.get(f"/v1/requests/{inline['request_id']}").status_code == 200
        quick_s = time.monotonic() - started
        codes = {answer.result().json()["code"] for answer in answers}

    # Less than the silent host may take.
    assert quick_s < 5
    assert codes == {"source_unavailable", "reference_check_busy"}
