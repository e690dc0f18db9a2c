"""The check of an image file before it is stored as a reference, on sound, damaged and hostile files."""

import io
import os
import struct
import time
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


def chunk(name, body=b""):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


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


def with_chunks(data, before, *chunks):
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


@pytest.mark.parametrize("read", [check_image, read_rgb])
@pytest.mark.parametrize(
    "data",
    [
        with_chunks(encoded("PNG"), b"IDAT", *[chunk(b"prVt")] * 300_000),
        with_chunks(encoded("PNG"), b"IDAT", *[chunk(b"IDAT")] * 300_000),
        with_chunks(encoded("PNG"), b"IEND", *[chunk(b"prVt")] * 300_000),
        # Each inflates to a megabyte.
        with_chunks(encoded("PNG"), b"IDAT", *[chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6), 9))] * 3000),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff\xfe\0\2" * 1_000_000 + b"\xff\xdb", 1),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff\xe1\0\x08Exif\0\0" * 300_000 + b"\xff\xdb", 1),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff" * 4_000_000 + b"\xff\xdb", 1),
        encoded("JPEG").replace(b"\xff\xdb", bytes(4_000_000) + b"\xff\xdb", 1),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff\0" * 2_000_000 + b"\xff\xdb", 1),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff\xd0" * 2_000_000 + b"\xff\xdb", 1),
    ],
    ids=["before", "pixels", "behind", "profiles", "comments", "exif", "fill", "zeros", "escaped", "restarts"],
)
def test_a_file_of_many_small_parts_is_refused_before_it_is_read(data, read):
    began_s = time.process_time()

    with pytest.raises(ReferenceRefused, match=r"has too many .* save it again without its metadata"):
        read(data)

    # Pillow alone takes seconds.
    assert time.process_time() - began_s < 1.5


def test_files_with_as_many_parts_as_real_encoders_write_are_taken():
    png = encoded("PNG", (1024, 1024))
    at, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    # As libpng writes it, and with comments by a proud program.
    pixels = zlib.compress(zlib.decompress(b"".join(pixel_chunks(png))), 0)
    pieces = [chunk(b"IDAT", pixels[start : start + 1024]) for start in range(0, len(pixels), 1024)]
    assert len(pieces) > 3000
    png = png[:at] + chunk(b"tEXt", b"a\0b") * 500 + b"".join(pieces) + png[end:]
    jpeg = encoded("JPEG", icc_profile=bytes(255 * 60_000), comment=b"x" * 60_000)

    assert check_image(png).width == 1024
    assert read_rgb(png).size == (1024, 1024)
    assert check_image(jpeg).width == 96


def pixel_chunks(png):
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            yield png[at + 8 : at + 8 + length]
        at += 12 + length


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


def test_a_named_image_becomes_young_again_when_it_is_old(tmp_path):
    data = encoded("PNG")
    store, image = ReferenceStore(DirectoryStore(tmp_path)), check_image(data)
    store.put(image, data)
    path = tmp_path / reference_key(image.sha256)
    young = path.stat().st_mtime_ns

    assert store.renew(image.sha256)
    assert path.stat().st_mtime_ns == young
    os.utime(path, (1, 1))
    assert store.renew(image.sha256)
    assert path.read_bytes() == data
    assert path.stat().st_mtime > 1
    assert not store.renew("0" * 64)
