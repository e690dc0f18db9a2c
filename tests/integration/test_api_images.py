"""Reference images that callers upload: over real HTTP into real S3."""

import base64
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from api import upload_body
from shared.local.ports import pick_free_port
from shared.references import MAX_FILE_BYTES, reference_key
from shared.storage import open_store
from worker.consumer.reference_files import reference_loader

PNG = {"Content-Type": "image/png"}


def encoded(fmt="PNG", size=(96, 80), mode="RGB", **options):
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(file, fmt, **options)
    return file.getvalue()


@pytest.fixture
def data():
    return encoded()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def post(api, data, **headers):
    return api.http.post("/v1/uploads", content=data, headers={**PNG, **headers})


def stored(api):
    """Return the digests of all images in this test's store."""
    return [entry.key.partition("/")[2] for entry in api.store.list_objects("references", limit=999)]


def problem(answer, status, code):
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    return body["detail"]


def connect(api):
    return socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=10)


def receive_until(raw, text):
    """Return what a connection sends until it has sent a text or ends: an answer's head may come before its body."""
    answer = b""
    while text not in answer and (data := raw.recv(65536)):
        answer += data
    return answer


def head(size, *, content_type="image/png", extra=""):
    return (
        f"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {size}\r\n{extra}\r\n"
    ).encode()


def large_png():
    """Return a sound PNG of a little less than the limit, with random pixels, which zlib cannot make smaller."""
    side = int((MAX_FILE_BYTES * 0.99 / 3) ** 0.5)
    image = Image.frombytes("RGB", (side, side), os.urandom(side * side * 3))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    assert MAX_FILE_BYTES * 0.9 < len(file.getvalue()) <= MAX_FILE_BYTES
    return file.getvalue()


def test_an_uploaded_image_is_stored_by_its_content_where_workers_look_for_it(api, data):
    answer = post(api, data)

    assert answer.status_code == 201, answer.text
    assert answer.json() == {
        "path": f"upload:{sha256(data)}",
        "sha256": sha256(data),
        "size_bytes": len(data),
        "width": 96,
        "height": 80,
        "effective_width": 96,
        "effective_height": 80,
        "warnings": [],
    }
    assert stored(api) == [sha256(data)]
    assert reference_loader(open_store(api.settings))(sha256(data)) == data


def test_the_same_image_again_is_the_same_object(api, data):
    first, second = post(api, data), post(api, data, **{"X-Content-SHA256": sha256(data)})

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert stored(api) == [sha256(data)]


@pytest.mark.parametrize(
    ("fmt", "mode", "content_type"),
    [
        ("PNG", "RGBA", "image/png"),
        ("JPEG", "CMYK", "IMAGE/JPEG; q=1"),
        ("WEBP", "RGB", "image/webp"),
        ("BMP", "P", "image/x-ms-bmp"),
        # The bytes decide what a file is.
        ("JPEG", "RGB", "image/png"),
        ("PNG", "L", "application/octet-stream"),
    ],
)
def test_each_format_is_taken_whatever_image_it_is_declared_as(api, fmt, mode, content_type):
    data = encoded(fmt, (1400, 900), mode)

    body = post(api, data, **{"Content-Type": content_type}).json()

    assert (body["width"], body["height"]) == (1400, 900)
    assert (body["effective_width"], body["effective_height"]) == (1264, 816)
    key = f"{api.store._prefix}{reference_key(sha256(data))}"
    found = api.store._client.head_object(Bucket=api.store._bucket, Key=key)
    assert found["ContentType"] == f"image/{fmt.lower()}"


def test_an_orientation_that_previews_do_not_apply_is_said(api):
    exif = Image.Exif()
    exif[0x0112] = 6

    body = post(api, encoded("JPEG", (128, 96), exif=exif)).json()

    assert (body["width"], body["height"]) == (128, 96)
    assert [warning[:36] for warning in body["warnings"]] == ["the image states an EXIF orientation"]


def bomb():
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    size = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(9000 * (1 + 9000 * 3)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image"),
        (b"hello", "no image"),
        (b"<!DOCTYPE html><html><body>login</body></html>", "a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "an SVG"),
        (encoded("GIF", mode="P"), "a GIF"),
        (encoded("TIFF"), "a TIFF"),
        (encoded()[:-40], "not a complete image"),
        (encoded("JPEG")[:-400], "not a complete image"),
        (encoded("WEBP")[:-40], "not a complete image"),
        (bomb(), "9000x9000 pixels; a reference may have 67,108,864 at most: scale it down"),
        (encoded(size=(63, 200)), "each side of a reference needs at least 64"),
        (encoded(size=(800, 99)), "at most 8 times as long as the other: crop it"),
    ],
    ids=["empty", "text", "html", "svg", "gif", "tiff", "cut png", "cut jpeg", "cut webp", "bomb", "small", "narrow"],
)
def test_a_file_that_no_job_could_use_is_refused_and_nothing_is_stored(api, data, message):
    detail = problem(post(api, data), 422, "invalid_reference")

    assert message in detail
    assert stored(api) == []


def test_a_jpeg_that_would_take_hours_to_decode_is_refused_at_once(api):
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    # 14 bytes, 2.5 ms.
    scan = data[data.rindex(b"\xff\xda") : -2]

    answer = post(api, data[:-2] + 200_000 * scan + data[-2:])

    assert "more than 100 scans" in problem(answer, 422, "invalid_reference")
    assert answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize("header", ["X-Content-SHA256", "Content-Digest"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_another_digest_than_stated_is_refused_and_nothing_is_stored(api, data, header, is_cut):
    other = hashlib.sha256(b"other").digest()
    value = other.hex() if header == "X-Content-SHA256" else f"sha-256=:{base64.b64encode(other).decode()}:"
    sent = data[:-40] if is_cut else data

    detail = problem(post(api, sent, **{header: value}), 422, "DIGEST_MISMATCH")

    assert sha256(sent) in detail
    assert stored(api) == []


def test_a_digest_without_a_sound_form_is_refused(api, data):
    problem(post(api, data, **{"X-Content-SHA256": "abc"}), 400, "INVALID_REQUEST")
    assert stored(api) == []


def test_an_upload_without_a_length_is_refused(api, data):
    assert "Content-Length" in problem(post(api, iter([data])), 411, "LENGTH_REQUIRED")
    assert stored(api) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_declared_as_an_image_is_refused(api, data, headers):
    assert "--data-binary @FILE" in problem(post(api, data, **headers), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert stored(api) == []


def test_a_body_without_a_type_is_refused_because_web_pages_may_send_it(api, data):
    answer = api.http.post("/v1/uploads", content=data)

    problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert stored(api) == []


def test_a_file_above_the_limit_is_refused_before_it_is_sent(api):
    with connect(api) as raw:
        raw.sendall(head(MAX_FILE_BYTES + 1, extra="Expect: 100-continue\r\n"))
        answer = receive_until(raw, b"FLUX2_REFERENCES_MAX_BYTES")

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"FLUX2_REFERENCES_MAX_BYTES" in answer


def test_a_caller_that_sends_too_large_a_file_anyway_reads_the_refusal(api):
    detail = problem(post(api, bytes(MAX_FILE_BYTES + 1)), 413, "BODY_TOO_LARGE")

    assert str(MAX_FILE_BYTES + 1) in detail
    assert stored(api) == []


def test_the_largest_image_is_taken_although_it_is_larger_than_any_json_body(api):
    data = large_png()

    answer = post(api, data)

    assert answer.status_code == 201, answer.text
    assert sha256(api.store.get(reference_key(sha256(data)))) == sha256(data)


def test_many_images_at_once_are_all_stored(api):
    images = [encoded(size=(64 + index, 64)) for index in range(24)]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda data: post(api, data), images + images))

    assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
    assert sorted(stored(api)) == sorted(map(sha256, images))


def test_images_that_would_fill_the_memory_are_asked_to_come_back(api, data, wait_until):
    free = api.services.image_slots._free
    waiting = [connect(api) for _ in range(4)]
    for raw in waiting:
        raw.sendall(head(MAX_FILE_BYTES) + data[:100])
    wait_until(lambda: api.services.image_slots._free == 0)

    answer = post(api, data)

    problem(answer, 503, "uploads_busy")
    assert int(answer.headers["Retry-After"]) >= 1
    # Adapters have places of their own, and polls need none.
    assert api.http.get("/v1/models").status_code == 200
    assert api.services.upload_slots._free == 4
    for raw in waiting:
        raw.close()
    wait_until(lambda: api.services.image_slots._free == free)
    assert post(api, data).status_code == 201


def test_a_caller_that_falls_silent_loses_its_place(api, data, wait_until, monkeypatch):
    monkeypatch.setattr(upload_body, "_PATIENCE_S", 0.3)
    free = api.services.image_slots._free

    with connect(api) as raw:
        raw.sendall(head(len(data)) + data[:100])
        answer = receive_until(raw, b"UPLOAD_INCOMPLETE")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"UPLOAD_INCOMPLETE" in answer
    wait_until(lambda: api.services.image_slots._free == free)
    assert stored(api) == []


def test_a_caller_that_goes_leaves_nothing(api, data, wait_until):
    free = api.services.image_slots._free
    with connect(api) as raw:
        raw.sendall(head(len(data)) + data[:-10])
        wait_until(lambda: api.services.image_slots._free < free)

    wait_until(lambda: api.services.image_slots._free == free)
    assert stored(api) == []


def test_a_store_that_is_away_is_said(api, serve_api, data):
    storage = api.settings.storage.model_copy(update={"retry_budget_s": 0})
    nowhere = api.settings.s3.model_copy(update={"bucket": "nowhere"})
    with serve_api(api.settings.model_copy(update={"storage": storage, "s3": nowhere})) as away:
        assert "bucket 'nowhere'" in problem(post(away, data), 503, "storage_unavailable")


def test_an_air_gap_takes_images_because_nothing_is_fetched_for_them(api, serve_api, data):
    sources = api.settings.sources.model_copy(update={"local_only": True})
    with serve_api(api.settings.model_copy(update={"sources": sources})) as gapped:
        assert post(gapped, data).status_code == 201


def test_a_stored_image_is_described_as_by_its_upload(api):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("JPEG", (1400, 900), exif=exif)
    uploaded = post(api, data).json()

    found = api.http.get(f"/v1/uploads/{sha256(data)}")

    assert (found.status_code, found.json()) == (200, uploaded)


def test_an_image_that_is_not_there_is_not_described(api):
    detail = problem(api.http.get(f"/v1/uploads/{'0' * 64}"), 404, "UPLOAD_NOT_FOUND")

    assert "upload it with POST /v1/uploads" in detail
    assert api.http.get("/v1/uploads/photo.png").status_code == 422


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: encoded(), lambda data: b"x" * len(data)])
def test_an_object_with_other_bytes_is_not_described_and_an_upload_repairs_one_that_was_cut(api, data, damage):
    post(api, data)
    damaged = damage(data)
    api.store.put(reference_key(sha256(data)), damaged, content_type="image/png")

    problem(api.http.get(f"/v1/uploads/{sha256(data)}"), 404, "UPLOAD_NOT_FOUND")
    assert post(api, data).status_code == 200

    repaired = api.store.get(reference_key(sha256(data))) == data
    assert repaired == (len(damaged) != len(data))


def test_an_api_that_is_killed_leaves_nothing(tmp_path, redis_client, redis_url, data, wait_until):
    port, folder = pick_free_port(), tmp_path / "objects"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLUX2_")},
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(folder),
        "FLUX2_API_PORT": str(port),
    }
    command = [sys.executable, "-m", "shared.cli", "api", "--port", str(port)]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_listening(port), what="the API's start", timeout_s=60)
            with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
                raw.sendall(head(len(data), extra="Expect: 100-continue\r\n"))
                # The API reads the body now.
                assert raw.recv(65536).startswith(b"HTTP/1.1 100 ")
                raw.sendall(data[:-10])
                process.send_signal(signal.SIGKILL)
                process.wait(timeout=10)
        finally:
            process.kill()

    assert not any(path.is_file() for path in folder.rglob("*"))


def is_listening(port):
    with socket.socket() as raw:
        return raw.connect_ex(("127.0.0.1", port)) == 0
