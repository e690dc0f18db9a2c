"""The client against servers that are not this API, and the names that its package offers."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest

import flux2_client
from flux2_client.async_client import AsyncClient
from flux2_client.client import Client
from shared.errors import ApiError


@pytest.fixture
def website():
    """The address of a server that answers everything with an HTML page, and has no file."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if self.path.startswith("/file") else 200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


JOB = {"request_id": "1", "status": "succeeded", "model": "flux2", "items": {}, "created_at": ""}
PAGES = {
    "/v1/requests?limit=50": {"data": [], "has_more": True, "next_cursor": "a"},
    "/v1/requests?limit=50&cursor=a": {"data": [JOB], "has_more": True, "next_cursor": "b"},
    "/v1/requests?limit=50&cursor=b": {"data": [], "has_more": False, "next_cursor": None},
}


@pytest.fixture
def listing():
    """The address of an API whose listing has empty pages before and after a page with a job."""

    class Listing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(PAGES[self.path]).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_empty_page_does_not_end_the_listing(listing):
    async def list_jobs():
        async with AsyncClient(listing) as client:
            return [job.request_id async for job in client.requests()]

    with Client(listing) as client:
        assert [job.request_id for job in client.requests()] == ["1"]
    assert anyio.run(list_jobs) == ["1"]


def test_a_web_page_is_not_mistaken_for_an_answer_of_the_api(website):
    with Client(website) as client, pytest.raises(ApiError, match=r"/status did not answer with JSON, .* not this API"):
        client.status("1")


def test_an_image_that_the_store_does_not_have_is_named_without_its_signature(website):
    with Client(website) as client, pytest.raises(ApiError) as raised:
        client.download(f"{website}/file.png?X-Amz-Signature=secret")

    assert str(raised.value) == f"{website}/file.png: 404 Not Found"


def test_the_package_offers_the_client_and_its_error():
    assert flux2_client.Client is Client
    assert flux2_client.ApiError is ApiError
    assert not hasattr(flux2_client, "Server")


def test_importing_the_client_imports_neither_the_api_nor_the_worker():
    code = "from flux2_client import Client; import sys; print('\\n'.join(sys.modules))"

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)

    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert "flux2_client" in packages
    assert not packages & {"api", "worker", "fastapi", "celery", "redis", "torch"}
