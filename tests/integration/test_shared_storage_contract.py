"""The behaviour of every object store, on real SeaweedFS and in a real folder."""

import os
import time
import urllib.error
import urllib.request

import pytest
from pydantic import SecretStr

from shared.errors import ObjectMissing, StorageUnavailable
from shared.settings import Settings
from shared.storage import open_store, s3_writer
from shared.storage.protocol import MAX_CHUNK, MIN_PIECE

KEY = "results/job-1/1/0.png"


@pytest.fixture(params=["s3", "directory"])
def options(request, settings, tmp_path) -> Settings:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return settings(storage={"backend": "directory", "directory": tmp_path / "objects", "prefix": "some/prefix/"})


@pytest.fixture
def store(options):
    return open_store(options)


@pytest.fixture
def s3_store(s3):
    return open_store(s3)


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read(), answer.headers


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_an_object_is_read_back_unchanged(store, size):
    data = os.urandom(size)

    store.put(KEY, data, content_type="image/png")

    assert store.get(KEY) == data
    assert store.exists(KEY)


def test_a_second_put_replaces_the_object(store):
    store.put(KEY, b"old", content_type="image/png")
    store.put(KEY, b"new", content_type="image/png")

    assert store.get(KEY) == b"new"


def test_an_object_that_was_never_put_does_not_exist(store):
    assert not store.exists("results/none.png")
    with pytest.raises(StorageUnavailable, match=r"results/none\.png"):
        store.get("results/none.png")


def test_the_url_gives_the_object_to_anyone(store):
    store.put(KEY, b"image", content_type="image/png")

    data, headers = fetch(store.url(KEY, expires_s=60))

    assert data == b"image"
    assert headers["Content-Type"] == "image/png"


def test_deleting_a_prefix_deletes_the_folder_and_nothing_else(store):
    for key in ("results/a/1/0.png", "results/a/2/1.png", "results/ab/1/0.png", "results/b.png"):
        store.put(key, b"x", content_type="image/png")

    assert store.delete_prefix("results/a") == 2
    assert store.delete_prefix("results/a") == 0

    assert not store.exists("results/a/1/0.png")
    assert store.exists("results/ab/1/0.png")
    assert store.exists("results/b.png")


def test_a_healthy_store_passes_the_check_and_keeps_no_probe(store, options):
    store.put(KEY, b"x", content_type="image/png")

    store.check()

    assert store.get(KEY) == b"x"
    assert store.delete_prefix(".flux2-check") == 0


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\0b", "a\nb"])
def test_a_key_that_is_not_a_plain_path_is_refused(store, key):
    with pytest.raises(ValueError, match="not an object key"):
        store.put(key, b"x", content_type="image/png")
    with pytest.raises(ValueError, match="not an object key"):
        store.delete_prefix(key)


def test_stores_with_different_prefixes_do_not_see_each_other(options):
    store = open_store(options)
    other = open_store(options.model_copy(update={"storage": options.storage.model_copy(update={"prefix": "other/"})}))

    store.put(KEY, b"x", content_type="image/png")

    assert not other.exists(KEY)


@pytest.mark.parametrize("prefix", ["{outside}/", "../", "x/../../", "/", "x//", "./", "x\\"])
def test_no_prefix_leads_out_of_the_folder_or_to_another_key(options, tmp_path, prefix):
    written = prefix.format(outside=tmp_path / "outside")
    # Settings refuse such a prefix; the store must hold without them.
    storage = options.storage.model_copy(update={"prefix": written})
    store = open_store(options.model_copy(update={"storage": storage}))

    for call in (lambda: store.put(KEY, b"x", content_type="image/png"), lambda: store.url(KEY, expires_s=60)):
        with pytest.raises(ValueError, match="not an object key"):
            call()
    with pytest.raises(ValueError, match="not an object key"):
        store.delete_prefix("results")

    assert not list(tmp_path.rglob("*.png"))


def write(store, key, data, *, opened_at=None):
    writer = store.open_writer(opened_at or key, content_type="application/octet-stream")
    for start in range(0, len(data), MIN_PIECE):
        writer.write(data[start : start + MIN_PIECE])
    writer.finish(key)
    # As a caller's `finally` does.
    writer.abort()


@pytest.mark.parametrize("size", [1, MIN_PIECE, 2 * MIN_PIECE + 1])
@pytest.mark.parametrize("opened_at", [None, "unfinished/a.bin"], ids=["in place", "moved"])
def test_an_object_that_is_written_in_pieces_is_read_back(store, size, opened_at):
    data = os.urandom(size)

    write(store, "uploads/a.bin", data, opened_at=opened_at)

    assert store.get("uploads/a.bin") == data
    assert store.list_objects("unfinished", limit=10) == []
    assert [entry.key for entry in store.list_objects("uploads", limit=10)] == ["uploads/a.bin"]


def test_an_object_is_not_visible_before_it_is_finished_nor_after_it_is_aborted(store):
    write(store, "uploads/a.bin", b"old")
    writer = store.open_writer("uploads/a.bin", content_type="application/octet-stream")
    writer.write(b"new")

    assert store.get("uploads/a.bin") == b"old"
    assert [entry.key for entry in store.list_objects("uploads", limit=10)] == ["uploads/a.bin"]
    writer.abort()
    writer.abort()

    assert store.get("uploads/a.bin") == b"old"


def test_two_writers_of_one_object_do_not_disturb_each_other(store):
    first, second = (store.open_writer("uploads/a.bin", content_type="application/octet-stream") for _ in range(2))

    first.write(b"same")
    second.write(b"same")
    first.finish("uploads/a.bin")
    second.finish("uploads/a.bin")

    assert store.get("uploads/a.bin") == b"same"


def test_a_copy_in_several_parts_gives_the_same_object(store, monkeypatch):
    monkeypatch.setattr(s3_writer, "_COPY_PART_BYTES", MIN_PIECE)
    data = os.urandom(2 * MIN_PIECE + 1)

    write(store, "uploads/a.bin", data, opened_at="unfinished/a.bin")

    assert store.get("uploads/a.bin") == data


def test_ranges_of_an_object_are_read(store):
    data = os.urandom(2 * MAX_CHUNK + 7)
    store.put("uploads/a.bin", data, content_type="application/octet-stream")

    chunks = list(store.stream("uploads/a.bin", 3))

    assert store.read("uploads/a.bin", 5, 1000) == data[5:1000]
    assert store.read("uploads/a.bin", len(data) - 2, len(data) + 9) == data[-2:]
    assert b"".join(chunks) == data[3:]
    assert max(map(len, chunks)) <= MAX_CHUNK


def test_the_size_and_the_time_of_an_object_are_known(store):
    before_s = time.time()
    store.put("uploads/a.bin", b"12345", content_type="application/octet-stream")

    found = store.stat("uploads/a.bin")

    assert (found.key, found.size_bytes) == ("uploads/a.bin", 5)
    # Stores keep whole seconds.
    assert before_s - 2 <= found.modified_s <= time.time() + 2


def test_a_missing_object_is_distinguished_from_a_store_that_fails(store):
    assert store.stat("uploads/none.bin") is None
    for read in (lambda: store.read("uploads/none.bin", 0, 1), lambda: next(store.stream("uploads/none.bin", 0))):
        with pytest.raises(ObjectMissing, match=r"uploads/none\.bin"):
            read()


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_objects_are_listed_page_by_page(store, limit):
    keys = ["uploads/a-b/1.bin", "uploads/a/1.bin", "uploads/a/2.bin", "uploads/b/1.bin", "uploads/a.c/1.bin"]
    for key in (*reversed(keys), "uploads-of-others/1.bin", "z.bin"):
        store.put(key, key.encode(), content_type="application/octet-stream")

    found = store.list_objects("uploads", limit=limit)
    while page := store.list_objects("uploads", after=found[-1].key, limit=limit):
        assert len(page) <= limit
        found += page

    # AWS orders whole keys, and SeaweedFS the parts of keys.
    assert sorted(entry.key for entry in found) == sorted(keys)
    assert all(entry.size_bytes == len(entry.key) for entry in found)
    assert [entry.key for entry in store.list_objects("uploads/a", limit=9)] == keys[1:3]
    assert store.list_objects("uploads/none", limit=3) == []


def test_one_object_is_deleted_and_a_repeat_changes_nothing(store):
    for key in ("uploads/a.bin", "uploads/a.bin2"):
        store.put(key, b"x", content_type="application/octet-stream")

    store.delete("uploads/a.bin")
    store.delete("uploads/a.bin")

    assert [entry.key for entry in store.list_objects("uploads", limit=9)] == ["uploads/a.bin2"]


# What only S3 has.


def list_unfinished(options):
    client = open_store(options)._client
    found = client.list_multipart_uploads(Bucket=options.s3.bucket).get("Uploads", ())
    return [each["Key"] for each in found if each["Key"].startswith(options.storage.prefix)]


def test_an_aborted_upload_leaves_no_parts(s3_store, s3):
    writer = s3_store.open_writer("uploads/a.bin", content_type="application/octet-stream")
    writer.write(bytes(MIN_PIECE))
    assert list_unfinished(s3) == [f"{s3.storage.prefix}uploads/a.bin"]

    writer.abort()

    assert list_unfinished(s3) == []


def test_an_upload_whose_completion_was_answered_to_nobody_is_complete(s3_store, s3):
    writer = s3_store.open_writer("uploads/a.bin", content_type="application/octet-stream")
    writer.write(b"all of it")
    writer._complete()

    writer.finish("uploads/a.bin")

    assert s3_store.get("uploads/a.bin") == b"all of it"


def test_a_presigned_url_names_the_file_and_has_a_signature_of_version_4(s3_store):
    s3_store.put(KEY, b"image", content_type="image/png")
    url = s3_store.url(KEY, expires_s=60)

    _, headers = fetch(url)

    assert headers["Content-Disposition"] == 'inline; filename="results-job-1-1-0.png"'
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "X-Amz-Expires=60" in url


@pytest.mark.parametrize("change", [("0.png", "1.png"), ("X-Amz-Expires=60", "X-Amz-Expires=600"), ("inline", "x")])
def test_a_presigned_url_opens_nothing_else(s3_store, change):
    for index in (0, 1):
        s3_store.put(f"results/job-1/1/{index}.png", b"image", content_type="image/png")
    url = s3_store.url(KEY, expires_s=60)

    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        fetch(url.replace(*change))

    refused.value.close()


def test_a_presigned_url_expires(s3_store, wait_until):
    s3_store.put(KEY, b"image", content_type="image/png")
    url = s3_store.url(KEY, expires_s=1)
    started = time.monotonic()

    wait_until(lambda: not opens(url))

    assert time.monotonic() - started < 5


def opens(url):
    try:
        fetch(url)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True


def test_urls_are_signed_for_the_public_endpoint(s3):
    public = s3.s3.model_copy(update={"public_endpoint_url": "https://images.example.com"})
    store = open_store(s3.model_copy(update={"s3": public}))

    assert store.url(KEY, expires_s=60).startswith(f"https://images.example.com/flux2/{s3.storage.prefix}{KEY}?")
    store.check()


@pytest.mark.parametrize(
    ("style", "start"),
    [
        ("path", "https://s3.example.com/pictures/"),
        ("virtual", "https://pictures.s3.example.com/"),
        ("auto", "https://s3.example.com/pictures/"),
    ],
)
def test_the_bucket_is_addressed_as_the_setting_says(s3, settings, style, start):
    options = settings(
        s3={"bucket": "pictures", "endpoint_url": "https://s3.example.com", "addressing_style": style}, storage={}
    )

    assert open_store(options).url("a.png", expires_s=60).startswith(f"{start}a.png?")


def test_wrong_credentials_fail_the_check_at_once_and_say_where(s3):
    store = open_store(s3.model_copy(update={"aws_secret_access_key": SecretStr("wrong")}))
    started = time.monotonic()

    for attempt in (store.check, lambda: store.put(KEY, b"x", content_type="image/png")):
        with pytest.raises(
            StorageUnavailable, match=r"PUT .* bucket 'flux2' at http://127.* 403 'SignatureDoesNotMatch'"
        ):
            attempt()

    assert time.monotonic() - started < 5


def test_missing_credentials_fail_at_once_and_say_so(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(s3.model_copy(update={"aws_access_key_id": None}))

    with pytest.raises(StorageUnavailable, match="Unable to locate credentials"):
        store.put(KEY, b"x", content_type="image/png")
    with pytest.raises(StorageUnavailable, match="Unable to locate credentials"):
        store.url(KEY, expires_s=60)


def test_a_missing_bucket_fails_at_once_and_is_named(s3):
    missing = s3.model_copy(update={"s3": s3.s3.model_copy(update={"bucket": "nowhere"})})

    with pytest.raises(StorageUnavailable, match=r"bucket 'nowhere' at http://127.*404 'NoSuchBucket'"):
        open_store(missing).put(KEY, b"x", content_type="image/png")


def test_server_side_encryption_is_requested(s3, s3_server):
    encrypted = s3.model_copy(update={"s3": s3.s3.model_copy(update={"sse": "AES256"})})
    store = open_store(encrypted)

    store.put(KEY, b"secret", content_type="image/png")

    _, headers = fetch(store.url(KEY, expires_s=60))
    assert headers["x-amz-server-side-encryption"] == "AES256"


# What only a folder has.


def test_a_folder_that_cannot_be_written_fails_the_check(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = open_store(settings(storage={"backend": "directory", "directory": tmp_path / "file"}))

    with pytest.raises(StorageUnavailable, match=r"write \.flux2-check/\w+/probe: "):
        store.check()


def test_nothing_but_the_object_is_left_in_the_folder(settings, tmp_path):
    store = open_store(settings(storage={"backend": "directory", "directory": tmp_path}))

    store.put("a/b.png", b"x", content_type="image/png")

    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b.png"]
    assert store.url("a/b.png", expires_s=1) == (tmp_path / "a/b.png").as_uri()
