"""Which texts of a request are files of this host."""

import base64
import hashlib
import io

import pytest
from PIL import Image

from flux2_client.local_images import find_local_images
from shared.errors import UploadRefused


def encoded(fmt="PNG", color="red"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, fmt)
    return file.getvalue()


def request(*texts):
    return {"prompts": [{"prompt": "a", "ctrl_img": text} for text in texts]}


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/a.png",
        "s3://bucket/a.png",
        "hf://owner/repo/a.png@main",
        "upload:" + "0" * 64,
        "data:image/png;base64," + base64.b64encode(encoded()).decode(),
        base64.b64encode(encoded()).decode(),
        # It begins as an absolute path.
        base64.b64encode(encoded("JPEG")).decode(),
        base64.encodebytes(encoded("JPEG")).decode(),
        base64.urlsafe_b64encode(encoded("WEBP")).decode().rstrip("="),
        "",
        None,
        7,
    ],
)
def test_what_is_no_file_is_left_to_the_api(text):
    assert not find_local_images(request(text)).digests


def test_files_are_known_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "same: as a.png").write_bytes(encoded())
    (tmp_path / "http:b.png").write_bytes(encoded(color="blue"))

    found = find_local_images(request("a.png", "same: as a.png", str(tmp_path / "a.png"), "http:b.png", "a.png"))

    red, blue = (hashlib.sha256(encoded(color=color)).hexdigest() for color in ("red", "blue"))
    assert list(found.paths) == [red, blue]
    assert found.digests == {
        "a.png": red,
        "same: as a.png": red,
        str(tmp_path / "a.png"): red,
        "http:b.png": blue,
    }


@pytest.mark.parametrize("text", ["a.png", "C:\\a.png", "folder/a.png", "a" * 99, "x.png" * 100, "a\0b"])
def test_a_path_without_a_file_is_refused(text):
    with pytest.raises(UploadRefused, match="is no file of this host; give an image file"):
        find_local_images(request(text))
