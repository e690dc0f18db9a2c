"""The client of the command line, against servers that are not this API."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flux2_client.client import Client
from shared.errors import ApiError


@pytest.fixture
def website():
    """The address of a server that answers everything with a page, and has no file."""

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


def test_a_page_is_not_taken_for_an_answer(website):
    with Client(website) as client, pytest.raises(ApiError, match=r"/status answers with something else than this API"):
        client.status("1")


def test_an_image_that_the_store_does_not_have_is_named_without_its_signature(website):
    with Client(website) as client, pytest.raises(ApiError) as raised:
        client.download(f"{website}/file.png?X-Amz-Signature=secret")

    assert str(raised.value) == f"{website}/file.png: 404 Not Found"
