"""Remote adapters are read within bounds of time, of threads and of memory."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from shared.adapters import remote as module
from shared.adapters.header import read_header
from shared.adapters.remote import RemoteAdapters
from shared.errors import AdapterCheckBusy, SourceUnavailable
from shared.sources.remote_file import Pin
from shared.sources.source import HttpsFile

URL = "https://example.com/robot.safetensors"
PIN = Pin("etag", '"v1"')


@dataclass
class _File:
    data: bytes
    name: str = URL
    pin: Pin = PIN
    sha256: str | None = None
    reads: list[int] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        self.reads.append(start)
        return self.data[start:end]

    def stream(self, start: int) -> Iterator[bytes]:
        raise AssertionError("a header is not streamed")


class _Sources:
    """Opens one file; `wait`, if given, holds each call until it is set."""

    def __init__(self, file: _File, wait: threading.Event | None = None) -> None:
        self._file = file
        self._wait = wait

    def open(self, source, *, pin=None, sha256=None):
        if self._wait is not None:
            self._wait.wait(20)
        return self._file


def _adapter(*, tensors: int) -> bytes:
    """Return a file whose header has many long names, and no data."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"{number:0200}": entry for number in range(tensors)}).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_call_whose_time_is_over_sends_no_further_request():
    file = _File(_adapter(tensors=10))
    adapters = RemoteAdapters(_Sources(file), max_bytes=10**9)

    with pytest.raises(SourceUnavailable, match="take too long to answer; try again later"):
        adapters.read(HttpsFile(URL), deadline=time.monotonic() - 1)

    assert file.reads == []


def test_a_long_header_is_given_up_between_two_of_its_parts(monkeypatch):
    file = _File(_adapter(tensors=2000))
    clock = iter([0.0, 1.0, 100.0])
    monkeypatch.setattr("shared.sources.ranged_reader.time.monotonic", lambda: next(clock))

    with pytest.raises(SourceUnavailable, match=URL):
        RemoteAdapters(_Sources(file), max_bytes=10**9).read(HttpsFile(URL), deadline=30.0)

    assert file.reads == [0]


def test_callers_beyond_those_that_may_wait_are_sent_away_at_once(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CHECKS", 1)
    monkeypatch.setattr(module, "_MAX_WAITING", 1)
    release, held, refused = threading.Event(), [], []
    adapters = RemoteAdapters(_Sources(_File(_adapter(tensors=1)), wait=release), max_bytes=10**9)

    def read():
        try:
            held.append(adapters.read(HttpsFile(URL)))
        except AdapterCheckBusy as error:
            refused.append(error)
            # The others hold their places until one was refused.
            release.set()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (len(held), len(refused)) == (2, 1)


def test_a_host_that_sends_a_large_header_slowly_delays_no_local_file(tmp_path):
    data = _adapter(tensors=6000)
    assert len(data) > 1024**2
    local = tmp_path / "local.safetensors"
    local.write_bytes(data)
    asked, resume = threading.Event(), threading.Event()

    class Slow(_File):
        def read(self, start, end):
            if start:
                asked.set()
                resume.wait(20)
            return super().read(start, end)

    adapters = RemoteAdapters(_Sources(Slow(data)), max_bytes=10**9)
    thread = threading.Thread(target=adapters.read, args=(HttpsFile(URL),))
    thread.start()
    assert asked.wait(20)

    header = read_header(local, max_bytes=10**9)

    resume.set()
    thread.join(30)
    assert len(header.tensors) == 6000


def test_headers_that_are_kept_take_a_bounded_amount_of_memory(monkeypatch):
    monkeypatch.setattr(module, "_CACHED_BYTES", 1_500_000)
    file = _File(_adapter(tensors=1500))
    adapters = RemoteAdapters(_Sources(file), max_bytes=10**9)

    for number in (1, 2, 1, 2):
        file.pin = Pin("etag", f'"v{number}"')
        adapters.read(HttpsFile(URL))
    assert file.reads.count(0) == 4  # one header of 1 MB has room, two have not

    file.data = _adapter(tensors=3000)
    file.pin = Pin("etag", '"large"')
    for _ in range(2):
        adapters.read(HttpsFile(URL))
    assert file.reads.count(0) == 6


def test_a_header_is_not_read_again_under_the_same_pin():
    file = _File(_adapter(tensors=10))
    adapters = RemoteAdapters(_Sources(file), max_bytes=10**9)

    for _ in range(3):
        adapters.read(HttpsFile(URL))

    assert file.reads == [0]
