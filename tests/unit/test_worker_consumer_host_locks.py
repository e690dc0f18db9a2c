"""A slot's name and a GPU each belong to one process of a host."""

import threading

import pytest

from shared.errors import ServerFailed
from worker.consumer.heartbeat import slot_name
from worker.consumer.host_locks import gpu_held, slot_held

ONE, OTHER = "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6380/0"


def test_a_name_is_held_by_one_and_free_again_after_it(tmp_path):
    with (
        slot_held("gpu-0", redis_url=ONE, folder=tmp_path),
        slot_held("gpu-1", redis_url=ONE, folder=tmp_path),
        pytest.raises(ServerFailed, match="another worker on this host is 'gpu-0'"),
    ):
        slot_held("gpu-0", redis_url=ONE, folder=tmp_path).__enter__()

    with slot_held("gpu-0", redis_url=ONE, folder=tmp_path):
        pass


def test_two_services_on_one_host_do_not_share_names(tmp_path):
    with (
        slot_held("worker-0", redis_url=ONE, folder=tmp_path),
        slot_held("worker-0", redis_url=OTHER, folder=tmp_path),
    ):
        pass


def test_a_gpu_is_waited_for_until_its_last_process_has_ended(tmp_path):
    order = []
    entered = threading.Event()

    def successor():
        entered.set()
        with gpu_held("gpu-1234", folder=tmp_path):
            order.append("successor")

    with gpu_held("gpu-1234", folder=tmp_path):
        thread = threading.Thread(target=successor)
        thread.start()
        entered.wait(5)
        thread.join(0.2)
        assert thread.is_alive()
        order.append("predecessor")
    thread.join(10)

    assert order == ["predecessor", "successor"]


def test_another_gpu_is_free(tmp_path):
    with gpu_held("gpu-1", folder=tmp_path), gpu_held("gpu-2", folder=tmp_path):
        pass


def test_a_configured_name_is_the_slots_name():
    assert slot_name("gpu-0", "cuda:0") == "gpu-0"
    assert slot_name(None, "gpu-1234").endswith("/gpu-1234")
