"""Threads read a file's bytes into tensors; files are pinned where there is room."""

import errno
import fcntl
import gc
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import CheckpointError, NotPinned
from worker.checkpoint import pinned_file, staging
from worker.checkpoint.fill import fill
from worker.checkpoint.reader import Reader, Region
from worker.checkpoint.tensor_files import TensorFiles
from worker.checkpoint.tensor_names import Origin

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def test_a_tensor_is_read_in_blocks_from_its_region(file):
    target = torch.empty(5, 1000, dtype=torch.uint8)

    with Reader(CPU, threads=3, block_bytes=700) as reader:
        reader.read(Region(file, 100, 5000), target)()

    assert target.flatten().tolist() == list((bytes(range(256)) * 40)[100:5100])


def test_a_file_that_ends_too_early_is_named(file):
    with (
        pytest.raises(CheckpointError, match=r"bytes: ends at byte 10240, in the middle of a tensor"),
        Reader(CPU) as reader,
    ):
        reader.read(Region(file, 10_000, 1000), torch.empty(1000, dtype=torch.uint8))()


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone: cannot be read: No such file"), Reader(CPU) as reader:
        reader.read(Region(tmp_path / "gone", 0, 10), torch.empty(10, dtype=torch.uint8))


def test_a_reader_closes_all_files_but_the_named_ones(file, tmp_path):
    other = shutil.copy(file, tmp_path / "other")
    target = torch.empty(10, dtype=torch.uint8)
    with Reader(CPU) as reader:
        for path in (file, other):
            reader.read(Region(path, 0, 10), target)()

        reader.close_except([other])
        file.unlink()
        other.unlink()

        reader.read(Region(other, 5, 10), target)()
        assert target.tolist() == list(range(5, 15))
        with pytest.raises(CheckpointError, match="bytes: cannot be read: No such file"):
            reader.read(Region(file, 0, 10), target)


def test_staged_tensors_arrive_in_order_while_the_next_batch_is_read_into_the_memory_of_the_one_before(monkeypatch):
    monkeypatch.setattr(staging, "_BATCH_BYTES", 100)
    shapes = {"a": (5, 10), "b": (40,), "c": (30,), "d": (3, 70), "e": (7,)}
    events, memory = [], set()

    def begin_read(name, target):
        events.append(f"begin {name}")
        target.fill_(ord(name))  # as early as possible: nothing may need the values before any more
        return lambda: events.append(f"complete {name}")

    for name, tensor in staging.read_staged(shapes, begin_read, device=CPU, dtype=torch.uint8):
        events.append(f"use {name}")
        memory.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        assert tensor.tolist() == torch.full(shapes[name], ord(name)).tolist()

    # The batches are a and b, c, d, which is larger than a batch, and e.
    assert events == [
        "begin a", "begin b", "begin c", "complete a", "use a", "complete b", "use b", "begin d", "complete c", "use c",
        "begin e", "complete d", "use d", "complete e", "use e",
    ]  # fmt: skip
    assert [size for _, size in memory] == [210, 210]


def test_a_file_is_pinned_only_if_there_is_room_for_the_pages_that_are_not_in_memory_yet(file, monkeypatch):
    with file.open("rb") as opened:
        monkeypatch.setattr(pinned_file, "_available_bytes", lambda: 5_000_000_000)
        pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=0)
        monkeypatch.setattr(pinned_file, "_available_bytes", lambda: 4_000_000_000)
        pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=0)  # it has just been written, so it is in memory
        monkeypatch.setattr(pinned_file, "_share_in_memory", lambda *_: 0.0)
        with pytest.raises(NotPinned, match=r"0\.0 GB of it must be read, and 4\.0 GB of memory are available"):
            pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=0)
        monkeypatch.setattr(pinned_file, "_available_bytes", lambda: 9_000_000_000)
        pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=4_000_000_000)
        with pytest.raises(NotPinned, match=r"3\.9 GB of memory are available"):
            pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=5_100_000_000)


def test_a_file_that_cannot_be_mapped_is_not_pinned(file, monkeypatch):
    def no_such_device(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", no_such_device)

    with file.open("rb") as opened, pytest.raises(NotPinned, match=r"cannot be mapped: .*No such device"):
        pinned_file.check_room_to_pin(opened.fileno(), pinned_bytes=0)


class Runtime:
    """A CUDA runtime that pins a given number of pieces and no more."""

    def __init__(self, pieces):
        self.left = pieces
        self.registered = set()

    def cudaHostRegister(self, address, size, flags):
        self.left -= 1
        if self.left >= 0:
            self.registered.add(address)
        return 0 if self.left >= 0 else 2

    def cudaHostUnregister(self, address):
        self.registered.remove(address)


@pytest.fixture
def runtime(monkeypatch):
    def make(pieces):
        runtime = Runtime(pieces)
        monkeypatch.setattr(pinned_file, "cuda_runtime", lambda: runtime)
        monkeypatch.setattr(pinned_file, "_PIECE_BYTES", mmap.PAGESIZE)
        return runtime

    return make


@pytest.fixture
def pinner():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_pinned_file_gives_its_bytes_in_the_pieces_in_which_it_was_pinned(tmp_path, runtime, pinner):
    values, pieces = os.urandom(3 * mmap.PAGESIZE + 10), runtime(4)
    (tmp_path / "bytes").write_bytes(values)

    with (tmp_path / "bytes").open("rb") as opened:
        pinned = pinned_file.PinnedFile(opened.fileno(), executor=pinner)
    pinned.pinning.result()
    found = [piece.numpy().tobytes() for piece in pinned.pages(100, len(values) - 100)]
    inside = [piece.numpy().tobytes() for piece in pinned.pages(mmap.PAGESIZE, mmap.PAGESIZE)]
    beyond = pinned.pages(100, len(values))
    pinned.close()

    assert [len(piece) for piece in found] == [mmap.PAGESIZE - 100, mmap.PAGESIZE, mmap.PAGESIZE, 10]
    assert b"".join(found) == values[100:]
    assert inside == [values[mmap.PAGESIZE : 2 * mmap.PAGESIZE]]
    assert beyond is None
    assert pieces.registered == set()


def test_pinned_pages_in_shared_memory_are_not_counted_as_available(runtime, pinner, monkeypatch):
    runtime(8)
    descriptor = os.memfd_create("bytes")
    os.write(descriptor, bytes(2 * mmap.PAGESIZE))

    in_memory = pinned_file.PinnedFile(descriptor, executor=pinner)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", no_seals)
        on_disk = pinned_file.PinnedFile(descriptor, executor=pinner)
    os.close(descriptor)

    assert (in_memory.size, in_memory.unavailable_bytes) == (2 * mmap.PAGESIZE, 0)
    assert (on_disk.size, on_disk.unavailable_bytes) == (2 * mmap.PAGESIZE, 2 * mmap.PAGESIZE)
    in_memory.close()
    on_disk.close()


def no_seals(*_):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_pieces_that_cannot_be_pinned_are_left_to_threads_and_the_others_are_unpinned_at_the_end(
    tmp_path, runtime, pinner
):
    pieces = runtime(2)
    (tmp_path / "bytes").write_bytes(bytes(4 * mmap.PAGESIZE))

    with (tmp_path / "bytes").open("rb") as opened:
        pinned = pinned_file.PinnedFile(opened.fileno(), executor=pinner)
    pinned.pinning.result()

    assert pinned.pages(0, mmap.PAGESIZE) is None
    assert pinned.pages(mmap.PAGESIZE, 2 * mmap.PAGESIZE) is None
    assert len(pinned.pages(2 * mmap.PAGESIZE, 2 * mmap.PAGESIZE)) == 2
    assert len(pieces.registered) == 2
    del pinned

    gc.collect()
    assert pieces.registered == set()


def test_a_file_that_was_just_written_is_in_memory_and_an_untouched_hole_is_not(tmp_path):
    whole, hole = tmp_path / "whole", tmp_path / "hole"
    whole.write_bytes(bytes(2**20))
    with hole.open("wb") as opened:
        opened.truncate(2**30)

    for path, share in ((whole, 1.0), (hole, 0.0)):
        with path.open("rb") as opened:
            assert pinned_file._share_in_memory(opened.fileno(), path.stat().st_size) == share


@pytest.mark.parametrize(("user", "share"), [("owner", 1.0), ("root", 1.0), ("writer", 1.0), ("reader", 0.0)])
def test_only_owners_and_writers_of_a_file_trust_the_kernels_report_of_its_pages(user, share, file, monkeypatch):
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: {"owner": owner, "root": 0}.get(user, owner + 1))
    monkeypatch.setattr(os, "access", lambda *_: user == "writer")
    monkeypatch.setattr(pinned_file, "_in_shared_memory", lambda _: False)

    with file.open("rb") as opened:
        assert pinned_file._share_in_memory(opened.fileno(), file.stat().st_size) == share


def test_the_memory_that_is_available_is_within_the_hosts():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert 0 < pinned_file._available_bytes() < total


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
def test_rows_of_any_dtype_reach_the_module_they_belong_to(stored, tmp_path):
    torch.manual_seed(1)
    rows = torch.randn(6, 5).to(stored)
    save_file({"fused": rows, "bias": torch.randn(3).to(stored)}, tmp_path / "a.safetensors")
    files = TensorFiles((tmp_path / "a.safetensors",))
    with torch.device("meta"):
        module = torch.nn.ModuleDict({"second": torch.nn.Linear(5, 2), "ends": torch.nn.Linear(5, 4, bias=False)})
        module["second"].bias = None

    fill(
        module,
        files,
        {"second.weight": Origin("fused", (1,), 3), "ends.weight": Origin("fused", (2, 0), 3)},
        device=CPU,
        dtype=torch.bfloat16,
        reject_unused=False,
    )

    assert torch.equal(module["second"].weight, rows[2:4].bfloat16())
    assert torch.equal(module["ends"].weight, torch.cat([rows[4:], rows[:2]]).bfloat16())


def test_an_unused_tensor_is_refused_unless_it_is_allowed(tmp_path):
    save_file({"weight": torch.ones(2, 2), "other": torch.ones(1)}, tmp_path / "a.safetensors")
    files = TensorFiles((tmp_path / "a.safetensors",))
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2, bias=False)

    with pytest.raises(CheckpointError, match="tensor 'other' is unexpected"):
        fill(module, files, {"weight": Origin("weight")}, device=CPU, dtype=torch.float32)
    fill(module, files, {"weight": Origin("weight")}, device=CPU, dtype=torch.float32, reject_unused=False)

    assert torch.equal(module.weight, torch.ones(2, 2))
