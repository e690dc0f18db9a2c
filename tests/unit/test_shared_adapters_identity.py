"""The sha256 of an adapter file is always that of its current bytes."""

import hashlib
import os

import pytest
from cachetools import LRUCache

from shared.adapters import identity
from shared.adapters.identity import sha256_of
from shared.errors import AdapterNotFound, AdapterRefused


def test_the_digest_is_that_of_the_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)

    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = sha256_of(file)

    def unreadable(*_):
        pytest.fail("the file was read again")

    monkeypatch.setattr(hashlib, "file_digest", unreadable)

    assert sha256_of(file) == first


def test_a_changed_file_is_read_again_even_when_size_and_times_are_kept(tmp_path, wait_until):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = file.stat()
    sha256_of(file)

    def rewritten():
        """Rewrite until the file system's clock, which ticks every few milliseconds, has moved."""
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return file.stat().st_ctime_ns != before.st_ctime_ns

    wait_until(rewritten)

    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()


def test_a_replaced_file_is_read_again(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    sha256_of(tmp_path / "a")

    (tmp_path / "b").replace(tmp_path / "a")

    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    digest = hashlib.file_digest

    def digest_while_an_upload_goes_on(opened, name):
        result = digest(opened, name)
        with file.open("ab") as upload:
            upload.write(b"more")
        return result

    monkeypatch.setattr(hashlib, "file_digest", digest_while_an_upload_goes_on)

    with pytest.raises(AdapterRefused, match="a: the file changed while it was read"):
        sha256_of(file)


def test_the_cache_forgets_the_file_that_was_used_least_recently(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_digests", LRUCache(2))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for file in (first, second, third):
        file.write_bytes(b"bytes")
    sha256_of(first)
    sha256_of(second)
    sha256_of(first)
    sha256_of(third)
    reads = []
    digest = hashlib.file_digest

    def counted(opened, name):
        reads.append(opened.name)
        return digest(opened, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)

    sha256_of(first)
    sha256_of(third)
    assert reads == []

    sha256_of(second)
    assert [str(read) for read in reads] == [str(second)]


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(AdapterNotFound, match="gone: no such file"):
        sha256_of(tmp_path / "gone")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(AdapterRefused, match="cannot be read"):
        sha256_of(tmp_path)
