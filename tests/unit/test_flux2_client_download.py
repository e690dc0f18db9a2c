"""Both clients download images that are whole, go on where they stopped, and renew URLs that have expired."""

import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest
from PIL import Image

from flux2_client.async_client import AsyncClient, AsyncImage
from flux2_client.client import Client
from flux2_client.models import ImageInfo
from flux2_client.receiver import receive_into
from shared.errors import ApiError, OutputRefused


def png():
    file = io.BytesIO()
    Image.effect_noise((256, 256), 90).convert("RGB").save(file, format="PNG")
    return file.getvalue()


PNG = png()


class Store(ThreadingHTTPServer):
    """Serves one image under URLs with a number, of which only `valid` has not expired; it also answers for the job.

    Attributes:
        cut_after: bytes after which the next answers hang up, one for each entry.
        stored: the bytes of the image.
        ranges: the `Range` headers of the requests for the image.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut_after = []
        self.stored = PNG
        self.honours_ranges = True
        self.refuses = False
        self.valid = 1
        self.results = 0
        self.ranges = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # A client that has read enough hangs up.

    def result(self):
        self.results += 1
        image = {
            "index": 0,
            "format": "png",
            "width": 256,
            "height": 256,
            "url": f"{self.url}/image?{self.valid}",
            "url_expires_at": "",
            "sha256": hashlib.sha256(PNG).hexdigest(),
            "size_bytes": len(PNG),
            "pipeline": {"engine": "exact", "precision": "bf16", "device": "cpu", "change": "none"},
            "field_of_a_newer_api": {"a": 1},
        }
        return {"request_id": "1", "status": "succeeded", "created_at": "", "outputs": {"images": [image]}, "new": 1}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        store = self.server
        if self.path == "/v1/requests/1/result":
            self.answer(200, json.dumps(store.result()).encode())
        elif store.refuses or self.path != f"/image?{store.valid}":
            self.answer(403, b"Request has expired")
        else:
            asked = self.headers.get("Range")
            store.ranges.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and store.honours_ranges else 0
            if start >= len(store.stored):
                self.answer(416, b"")
            elif start:
                end = len(store.stored)
                self.answer(206, store.stored[start:], {"Content-Range": f"bytes {start}-{end - 1}/{end}"})
            else:
                self.answer(200, store.stored)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.server.cut_after.pop(0) if status < 400 and "image" in self.path and self.server.cut_after else None
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def store():
    server = Store()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["sync", "async"])
def use(request, store, monkeypatch):
    """Call a function with the job's image and return its value, awaited if the client is asynchronous."""
    monkeypatch.setattr("flux2_client.retries._FIRST_WAIT_S", 0.01)

    def use_sync(action):
        with Client(store.url, retry_s=5) as client:
            [image] = client.result("1").images
            return action(image)

    def use_async(action):
        async def main():
            async with AsyncClient(store.url, retry_s=5) as client:
                [image] = (await client.result("1")).images
                return await action(image)

        return anyio.run(main)

    return use_sync if request.param == "sync" else use_async


def test_an_image_is_downloaded_as_bytes_and_as_a_picture(use):
    assert use(lambda image: image.bytes()) == PNG
    assert use(lambda image: image.pil()).size == (256, 256)


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(use, store):
    store.cut_after = [1000, 2000]

    assert use(lambda image: image.bytes()) == PNG

    assert store.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_a_store_without_ranges_sends_the_whole_image_again(use, store):
    store.honours_ranges = False
    store.cut_after = [1000]

    assert use(lambda image: image.bytes()) == PNG


def test_a_file_gets_its_name_only_when_it_is_whole(use, store, tmp_path):
    path = tmp_path / "new" / "image.png"
    store.stored = PNG[:-1] + b"x"

    with pytest.raises(ApiError, match="have another sha256"):
        use(lambda image: image.save(path))
    assert not path.exists()
    store.stored = PNG
    use(lambda image: image.save(path))

    assert path.read_bytes() == PNG
    assert [file.name for file in path.parent.iterdir()] == ["image.png"]


def test_an_interrupted_file_is_resumed_by_a_later_call(use, store, tmp_path):
    (tmp_path / "image.png.part").write_bytes(PNG[:5000])

    use(lambda image: image.save(tmp_path / "image.png"))

    assert store.ranges == ["bytes=5000-"]
    assert (tmp_path / "image.png").read_bytes() == PNG


def test_two_downloads_of_one_file_at_the_same_time_both_end_with_it(use, tmp_path):
    path = tmp_path / "image.png"

    with receive_into(path, size_bytes=None, sha256="") as first:
        first.write(PNG[:5000])
        use(lambda image: image.save(path))
        between = path.read_bytes()
        first.write(PNG[5000:])

    assert between == path.read_bytes() == PNG
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_a_download_that_fails_next_to_another_one_leaves_nothing(use, store, tmp_path):
    path = tmp_path / "image.png"
    store.stored = PNG[:-1] + b"x"

    with receive_into(path, size_bytes=None, sha256="") as first:
        with pytest.raises(ApiError, match="have another sha256"):
            use(lambda image: image.save(path))
        first.write(PNG)

    assert path.read_bytes() == PNG
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize("left", [b"other bytes", PNG + b"more", b"x" * len(PNG)], ids=["short", "long", "same size"])
def test_remains_of_another_file_are_replaced(use, tmp_path, left):
    (tmp_path / "image.png.part").write_bytes(left)

    use(lambda image: image.save(tmp_path / "image.png"))

    assert (tmp_path / "image.png").read_bytes() == PNG


def test_a_file_that_is_there_is_not_downloaded_again(use, store, tmp_path):
    (tmp_path / "image.png").write_bytes(PNG)
    (tmp_path / "other.png.part").write_bytes(PNG)

    use(lambda image: image.save(tmp_path / "image.png"))
    use(lambda image: image.save(tmp_path / "other.png"))

    assert store.ranges == []
    assert (tmp_path / "other.png").read_bytes() == PNG


def test_a_store_that_sends_too_much_is_not_read_to_its_end(use, store):
    store.stored = PNG + bytes(50_000_000)

    with pytest.raises(ApiError, match="more bytes than the"):
        use(lambda image: image.bytes())


def test_an_expired_url_is_renewed_once(use, store):
    def expire(image):
        store.valid = 2
        return image.bytes()

    assert use(expire) == PNG
    assert store.results == 2


def test_a_url_that_was_renewed_for_another_image_and_expired_since_is_renewed_again(use, store):
    async def both_async(image):
        store.valid = 2
        first = await image.bytes()
        store.valid = 3
        return first, await image.bytes()

    def both(image):
        if isinstance(image, AsyncImage):
            return both_async(image)
        store.valid = 2
        first = image.bytes()
        store.valid = 3
        return first, image.bytes()

    assert use(both) == (PNG, PNG)
    assert store.results == 3


def test_an_image_that_the_store_refuses_for_another_reason_is_an_error(use, store):
    def refuse(image):
        store.refuses = True
        return image.bytes()

    with pytest.raises(ApiError, match=r"/image: 403") as raised:
        use(refuse)

    assert raised.value.status == 403
    assert "?" not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_an_error_without_a_traceback(use, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputRefused, match=r"cannot write .*/file/image\.png"):
        use(lambda image: image.save(tmp_path / "file" / "image.png"))


def test_fields_of_a_newer_api_are_kept(store):
    with Client(store.url) as client:
        [image] = client.result("1").images

    assert isinstance(image, ImageInfo)
    assert image.model_dump()["field_of_a_newer_api"] == {"a": 1}
    with pytest.raises(ValueError, match="frozen"):
        image.index = 1
