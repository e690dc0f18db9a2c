"""Whatever happens to an adapter file while it is checked, the caller gets an error about the file, never a crash."""

import errno
import fcntl
import hashlib
import os
import signal

import pytest
import torch
from safetensors.torch import save_file

from shared.adapters import header
from shared.adapters.header import read_header
from shared.adapters.identity import sha256_of
from shared.adapters.inspection import inspect_adapter
from shared.adapters.opened import open_adapter
from shared.adapters.validate import validate_adapters
from shared.catalog import MODELS
from shared.errors import AdapterNotFound, AdapterRefused
from shared.request import LoraItem
from shared.settings import AdaptersSettings

MAX = 2**30


def write_adapter(file, value=0.0):
    shapes = (("A", (4, 64)), ("B", (64, 4)))
    name = "diffusion_model.double_blocks.0.img_attn.proj.lora_{}.weight"
    save_file({name.format(half): torch.full(shape, value) for half, shape in shapes}, file)


@pytest.fixture
def adapter(tmp_path):
    file = tmp_path / "adapter.safetensors"
    write_adapter(file)
    return file


def validate(file):
    lora = LoraItem(path=file.name)
    return validate_adapters([lora], MODELS["flux2"], layers=None, settings=AdaptersSettings(root=file.parent))


def delete(file):
    file.unlink()


def truncate(file):
    os.truncate(file, file.stat().st_size - 8)


def replace(file):
    fresh = file.with_name("fresh")
    write_adapter(fresh, 1.0)
    fresh.replace(file)


def rewrite(file):
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file)


def fail(_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


CHANGES = [
    (delete, AdapterNotFound, "no such file"),
    (truncate, AdapterRefused, r"the file changed|the file shrank|cut off|ends at"),
    (replace, AdapterRefused, "the file changed while it was read"),
    (rewrite, AdapterRefused, "the file changed while it was read"),
    (fail, AdapterRefused, "cannot be read: Input/output error"),
]


@pytest.mark.parametrize("check", [validate, lambda file: inspect_adapter(file, max_bytes=MAX)], ids=["job", "inspect"])
@pytest.mark.parametrize(("change", "error", "message"), CHANGES, ids=[change.__name__ for change, *_ in CHANGES])
@pytest.mark.parametrize("moment", ["before the header", "before the hash", "after the hash"])
def test_a_file_that_changes_during_the_check_is_refused(
    check, change, error, message, moment, adapter, monkeypatch, wait_until
):
    module, name = (header, "read_frame") if moment == "before the header" else (hashlib, "file_digest")
    original = getattr(module, name)
    ctime_ns = adapter.stat().st_ctime_ns
    # A change within the same tick of the file system's clock would not be seen.
    wait_until(lambda: (os.chmod(adapter, 0o644), adapter.stat().st_ctime_ns > ctime_ns)[1])

    def step(*arguments, **options):
        if moment == "after the hash":
            result = original(*arguments, **options)
            change(adapter)
            return result
        change(adapter)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, step)

    with pytest.raises(error, match=message):
        check(adapter)


@pytest.mark.parametrize("read", [sha256_of, lambda file: read_header(file, max_bytes=MAX)], ids=["hash", "header"])
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.EACCES, AdapterRefused, "cannot be read: Permission denied"),
        (errno.ENOENT, AdapterNotFound, "no such file"),
        (errno.ENOTDIR, AdapterNotFound, "no such file"),
        (errno.EIO, AdapterRefused, "cannot be read: Input/output error"),
        (errno.ESTALE, AdapterRefused, "cannot be read: Stale file handle"),
    ],
)
def test_a_file_that_cannot_be_opened_is_refused(read, number, error, message, adapter, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(error, match=message):
        read(adapter)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(AdapterRefused, match="not a regular file"), open_adapter(tmp_path / "pipe"):
        pytest.fail("a pipe was opened")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="needs Linux")
def test_a_file_that_a_file_server_has_leased_is_read_when_the_lease_ends(adapter):
    # As Samba does for a client that may still hold writes to the file.
    with adapter.open("r+b") as leased:
        released = []

        def release(*_):
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            released.append(True)

        before = signal.signal(signal.SIGIO, release)
        try:
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)

            assert sha256_of(adapter) == hashlib.sha256(adapter.read_bytes()).hexdigest()
        finally:
            signal.signal(signal.SIGIO, before)
    assert released


def test_header_size_and_sha256_are_those_of_one_file(adapter):
    found = validate(adapter)[0].ref

    assert found.size_bytes == adapter.stat().st_size
    assert found.sha256 == hashlib.sha256(adapter.read_bytes()).hexdigest()
