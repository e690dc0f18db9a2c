"""The check of an image file before it is stored as a reference, on sound, damaged and hostile files."""

import io
import os
import struct
import zlib

import pytest
from PIL import Image

from shared.errors import ReferenceRefused
from shared.reference_image import check_image, read_rgb
from shared.reference_store import ReferenceStore
from shared.references import reference_key
from shared.storage.directory import DirectoryStore


def encoded(fmt, size=(96, 80), mode="RGB", **options):
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(file, fmt, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (encoded("PNG"), "image/png"),
        (encoded("PNG", mode="RGBA"), "image/png"),
        (encoded("PNG", mode="I;16"), "image/png"),
        (encoded("JPEG"), "image/jpeg"),
        (encoded("JPEG", mode="CMYK", progressive=True), "image/jpeg"),
        (encoded("MPO", save_all=True, append_images=[Image.new("RGB", (96, 80))]), "image/jpeg"),
        (encoded("WEBP"), "image/webp"),
        (encoded("BMP", mode="P"), "image/bmp"),
    ],
)
def test_a_complete_image_is_described(data, content_type):
    file = check_image(data)

    assert (file.content_type, file.width, file.height) == (content_type, 96, 80)
    assert (file.prepared.width, file.prepared.height) == (96, 80)


def test_the_size_that_is_encoded_is_that_after_scaling_and_cropping():
    file = check_image(encoded("JPEG", (1400, 900)))

    assert (file.width, file.height) == (1400, 900)
    assert (file.prepared.width, file.prepared.height) == (1264, 816)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_that_was_cut_is_refused_wherever_it_was_cut(fmt):
    data = encoded(fmt)

    for share in (0.0, 0.1, 0.5, 0.9):
        with pytest.raises(ReferenceRefused, match=r"not a complete image|or its beginning is damaged"):
            check_image(data[: int(share * len(data))])


@pytest.mark.parametrize(
    "data",
    [
        encoded("GIF", mode="P"),
        encoded("TIFF"),
        encoded("ICO"),
        b'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"/>',
        b"<!DOCTYPE html><html><body>not found</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        bytes(4096),
    ],
    ids=["gif", "tiff", "ico", "svg", "html", "postscript", "zeros"],
)
def test_other_formats_are_refused(data):
    with pytest.raises(ReferenceRefused, match="PNG, JPEG, WEBP, BMP"):
        check_image(data)


def test_an_image_with_too_many_pixels_is_refused_before_they_are_decoded():
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    # It would take 10 GB; no row of it is there.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    with pytest.raises(ReferenceRefused, match="too many pixels"):
        check_image(data)


@pytest.mark.parametrize(("size", "message"), [((63, 200), "at least 64"), ((1000, 100), "at most 8 times")])
def test_a_size_that_no_preview_takes_is_refused_before_the_pixels_are_decoded(size, message):
    # Cut: the pixels cannot be decoded.
    with pytest.raises(ReferenceRefused, match=message):
        check_image(encoded("PNG", size)[:-30])


@pytest.mark.parametrize("read", [check_image, read_rgb])
def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(read):
    data = encoded("JPEG", mode="L", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    few, many = data[:-2] + 20 * scan + data[-2:], data[:-2] + 10_000 * scan + data[-2:]

    read(few)
    with pytest.raises(ReferenceRefused, match="more than 100 scans"):
        read(many)


def test_the_bytes_of_a_jpegs_scan_in_a_png_mean_nothing():
    data = encoded("BMP")

    # Behind the pixels, which Pillow does not read.
    assert check_image(data + 200 * b"\xff\xda\x00").content_type == "image/bmp"


def test_a_file_is_stored_by_its_content_and_becomes_young_again_when_it_is_old(tmp_path):
    data = encoded("PNG")
    store, image = ReferenceStore(DirectoryStore(tmp_path)), check_image(data)
    first = store.put(image, data)
    path = tmp_path / reference_key(image.sha256)
    os.utime(path, (1, 1))

    again = store.put(image, data)

    assert (first, again) == (True, False)
    assert path.read_bytes() == data
    assert path.stat().st_mtime > 1
