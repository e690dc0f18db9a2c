"""The sha256 of an adapter file is always that of its current bytes."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

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


class Clock:
    """Replaces the module's `time`: it moves only when the code sleeps or the test says so."""

    def __init__(self, monkeypatch):
        self.now_s = time.time()
        self.slept_s = []
        monkeypatch.setattr(
            identity,
            "time",
            SimpleNamespace(time=lambda: self.now_s, monotonic=lambda: self.now_s, sleep=self.sleep),
        )

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def coarse_times(monkeypatch):
    """The times of a file system that counts in steps of two seconds, as FAT does."""
    exact = identity.stamp_of

    def coarse(file):
        stamp = exact(file)
        times = {name: getattr(stamp, name) // (2 * 10**9) * 2 * 10**9 for name in ("mtime_ns", "ctime_ns")}
        return stamp._replace(**times)

    monkeypatch.setattr(identity, "stamp_of", coarse)


@pytest.fixture
def reads(monkeypatch):
    """The files that were hashed."""
    read, digest = [], hashlib.file_digest

    def counted(opened, name):
        read.append(opened.name)
        return digest(opened, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def test_a_rewrite_within_one_tick_of_the_file_systems_clock_is_noticed(tmp_path, monkeypatch, clock, coarse_times):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    with file.open("rb") as opened:
        frozen = identity.stamp_of(opened)
    monkeypatch.setattr(identity, "stamp_of", lambda _: frozen)
    sha256_of(file)

    # The same size, and times that have not changed yet.
    file.write_bytes(b"two")

    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()


def test_where_times_are_coarse_a_digest_is_kept_once_a_rewrite_would_show(tmp_path, clock, coarse_times, reads):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    sha256_of(file)
    sha256_of(file)
    assert len(reads) == 2

    clock.now_s += 2.1
    sha256_of(file)
    assert len(reads) == 3
    for _ in range(5):
        sha256_of(file)

    assert len(reads) == 3
    assert sum(clock.slept_s) < 0.1


def test_where_times_are_fine_a_new_file_is_read_once_after_a_tick_of_waiting(tmp_path, clock, reads):
    file = tmp_path / "a"
    file.write_bytes(b"one")

    for _ in range(5):
        sha256_of(file)

    assert len(reads) == 1
    assert clock.slept_s == [pytest.approx(0.02)]


def test_a_file_that_has_been_there_for_long_is_read_without_waiting(tmp_path, clock, reads):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    clock.now_s += 61

    sha256_of(file)
    sha256_of(file)

    assert (len(reads), clock.slept_s) == (1, [])


def test_requests_for_one_new_file_read_it_once(tmp_path, reads):
    file = tmp_path / "a"
    file.write_bytes(os.urandom(3_000_000))

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(sha256_of, [file] * 16))

    assert digests == {hashlib.sha256(file.read_bytes()).hexdigest()}
    assert len(reads) == 1


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(AdapterNotFound, match="gone: no such file"):
        sha256_of(tmp_path / "gone")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(AdapterRefused, match="cannot be read"):
        sha256_of(tmp_path)
