"""A slot's name and a GPU each belong to one process of a host."""

import fcntl
import os
import subprocess
import sys
import threading

import pytest

from shared.errors import ServerFailed
from worker.consumer.host_locks import gpu_lock, slot_lock
from worker.consumer.slot import slot_name

ONE, OTHER = "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6380/0"

LOCK_A_GPU = """
import pathlib, sys
from worker.consumer.host_locks import gpu_lock
with gpu_lock("gpu-1234", folder=pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_slots_name_belongs_to_one_process_and_is_free_after_it(tmp_path):
    with (
        slot_lock("gpu-0", redis_url=ONE, folder=tmp_path),
        slot_lock("gpu-1", redis_url=ONE, folder=tmp_path),
        pytest.raises(ServerFailed, match="another worker on this host has the name 'gpu-0'"),
    ):
        slot_lock("gpu-0", redis_url=ONE, folder=tmp_path).__enter__()

    with slot_lock("gpu-0", redis_url=ONE, folder=tmp_path):
        pass


def test_two_services_on_one_host_do_not_share_names(tmp_path):
    with (
        slot_lock("worker-0", redis_url=ONE, folder=tmp_path),
        slot_lock("worker-0", redis_url=OTHER, folder=tmp_path),
    ):
        pass


def test_a_worker_waits_for_its_gpu_until_the_previous_process_has_ended(tmp_path):
    order = []
    entered = threading.Event()

    def successor():
        entered.set()
        with gpu_lock("gpu-1234", folder=tmp_path):
            order.append("successor")

    with gpu_lock("gpu-1234", folder=tmp_path):
        thread = threading.Thread(target=successor)
        thread.start()
        entered.wait(5)
        thread.join(0.2)
        assert thread.is_alive()
        order.append("predecessor")
    thread.join(10)

    assert order == ["predecessor", "successor"]


def test_two_gpus_are_locked_independently(tmp_path):
    with gpu_lock("gpu-1", folder=tmp_path), gpu_lock("gpu-2", folder=tmp_path):
        pass


def test_the_kernel_drops_the_lock_of_a_killed_process(tmp_path):
    command = [sys.executable, "-c", LOCK_A_GPU, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout.readline() == b"locked\n"
        victim.kill()
        victim.wait(10)

    with gpu_lock("gpu-1234", folder=tmp_path):
        pass


def test_a_process_of_an_earlier_release_excludes_this_one(tmp_path):
    with (tmp_path / f"flux2-{os.getuid()}-gpu-1234.lock").open("w") as earlier:
        fcntl.flock(earlier, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entered = threading.Event()

        def successor():
            with gpu_lock("gpu-1234", folder=tmp_path):
                entered.set()

        thread = threading.Thread(target=successor)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join(10)


def test_only_the_owner_may_open_a_lock_file_and_it_stays_after_use(tmp_path):
    with gpu_lock("gpu-1", folder=tmp_path):
        pass

    [file] = tmp_path.iterdir()
    assert file.name == f"flux2-{os.getuid()}-gpu-1.lock"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_hold_locks_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(
        ServerFailed, match=r"FLUX2_WORKER_LOCK_DIR .* cannot hold locks: Not a directory; choose a folder"
    ):
        gpu_lock("gpu-1", folder=tmp_path / "file" / "locks").__enter__()


def test_a_configured_name_is_the_slots_name():
    assert slot_name("gpu-0", "cuda:0") == "gpu-0"
    assert slot_name(None, "gpu-1234").endswith("/gpu-1234")
