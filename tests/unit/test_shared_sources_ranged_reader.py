"""A remote file is read like a local one, with few requests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save

from shared.adapters.header import read_open_header
from shared.errors import AdapterRefused
from shared.sources.ranged_reader import RangedReader
from shared.sources.remote_file import Pin

_KIB = 1024
_PIN = Pin("commit", "0123456789abcdef0123456789abcdef01234567")


@dataclass
class _Remote:
    """A remote file that notes the ranges that were requested."""

    data: bytes
    name: str = "hf://ann/robots/robot.safetensors@main"
    pin: Pin = _PIN
    sha256: str | None = None
    ranges: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.ranges.append((start, end))
        return self.data[start:end]

    def stream(self, start: int) -> Iterator[bytes]:
        raise AssertionError("a header is not streamed")


def test_random_reads_give_the_bytes_of_the_file() -> None:
    draw = random.Random(1)
    remote = _Remote(draw.randbytes(1_000_000))
    reader = RangedReader(remote)
    for _ in range(200):
        start, count = draw.randrange(1_100_000), draw.randrange(300_000)
        assert reader.seek(start) == start
        assert reader.read(count) == remote.data[start : start + count]
        assert reader.tell() == max(start, min(start + count, len(remote.data)))


def test_positions_are_counted_from_the_start_here_and_the_end() -> None:
    reader = RangedReader(_Remote(b"0123456789"))
    assert reader.seek(0, os.SEEK_END) == 10
    assert reader.read() == b""
    assert reader.seek(-3, os.SEEK_END) == 7
    assert reader.read(2) == b"78"
    assert reader.seek(-4, os.SEEK_CUR) == 5
    assert reader.read() == b"56789"


def test_sequential_reads_take_a_few_growing_requests() -> None:
    remote = _Remote(bytes(64 * 1024 * _KIB))
    reader = RangedReader(remote)
    while reader.read(64 * _KIB):
        pass
    sizes = [end - start for start, end in remote.ranges]
    assert sizes[:7] == [128 * _KIB, 256 * _KIB, 512 * _KIB, 1024 * _KIB, 2048 * _KIB, 4096 * _KIB, 4096 * _KIB]
    assert len(sizes) < 25
    assert sum(sizes) == len(remote.data) == reader.fetched_bytes


def test_the_header_of_an_adapter_takes_one_request() -> None:
    tensors = {f"transformer.layer_{index}.lora_A.weight": torch.zeros(4, 4096) for index in range(100)}
    remote = _Remote(save(tensors))
    reader = RangedReader(remote)
    header = read_open_header(reader, max_bytes=10**9)
    assert header.tensors.keys() == tensors.keys()
    assert remote.ranges == [(0, 128 * _KIB)]


def test_a_file_that_is_no_adapter_is_named_as_its_source_names_it() -> None:
    with pytest.raises(AdapterRefused, match=r"robot.safetensors@main: not a safetensors file; this is an HTML page"):
        read_open_header(RangedReader(_Remote(b"<html><body>Log in</body></html>")), max_bytes=10**9)
