"""Images that an API stores in a folder: only an API on this host can have the client read files."""

import hashlib
import os

import pytest

from flux2_client.client import Client, Image
from shared.errors import ApiError

DATA = b"picture"


@pytest.fixture
def make_image():
    """Describe an image that the API stored in a file."""

    def make(client, file, **changes):
        values = {
            "index": 0,
            "format": "png",
            "width": 64,
            "height": 64,
            "url": file.as_uri(),
            "url_expires_at": "",
            "sha256": hashlib.sha256(DATA).hexdigest(),
            "size_bytes": len(DATA),
            "pipeline": {"engine": "exact", "precision": "bf16", "device": "cpu", "change": "none"},
        }
        image = Image.model_validate(values | changes)
        image.bind(client, request_id="1")
        return image

    return make


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"])
def test_a_file_of_an_api_on_this_host_is_copied(make_image, tmp_path, url):
    stored = tmp_path / "à picture #1.png"
    stored.write_bytes(DATA)

    with Client(url) as client:
        image = make_image(client, stored)
        saved = image.save(tmp_path / "saved" / "a.png")

        assert image.bytes() == saved.read_bytes() == DATA


@pytest.mark.parametrize("url", ["http://10.0.0.5:8000", "http://studio:8000", "http://127.0.0.1.example.com"])
def test_an_api_on_another_host_cannot_have_a_file_of_this_one_read(make_image, tmp_path, url):
    stored = tmp_path / "a.png"
    stored.write_bytes(DATA)

    with Client(url) as client, pytest.raises(ApiError, match="copy it from there, or have the API store images in S3"):
        make_image(client, stored).save(tmp_path / "b.png")

    assert not (tmp_path / "b.png").exists()


def test_a_file_that_is_not_the_image_is_refused(make_image, tmp_path):
    (tmp_path / "other.png").write_bytes(b"private")
    (tmp_path / "longer.png").write_bytes(DATA * 2)
    os.mkfifo(tmp_path / "pipe")

    with Client("http://127.0.0.1:8000") as client:
        for name, fault in (("other.png", "another sha256"), ("longer.png", "more bytes"), ("pipe", "fewer bytes")):
            with pytest.raises(ApiError, match=fault):
                make_image(client, tmp_path / name).save(tmp_path / "saved.png")

    assert not (tmp_path / "saved.png").exists()


def test_a_file_that_cannot_be_read_and_a_bare_url_are_refused(make_image, tmp_path):
    with Client("http://127.0.0.1:8000") as client:
        with pytest.raises(ApiError, match=r"No such file or directory; run this on the API's host"):
            make_image(client, tmp_path / "missing.png").bytes()
        with pytest.raises(ApiError, match="download the image of a result"):
            client.download((tmp_path / "missing.png").as_uri())
        with pytest.raises(ApiError, match="download the image of a result"):
            make_image(client, tmp_path / "missing.png", sha256="").bytes()
