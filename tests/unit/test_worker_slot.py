"""A slot's name belongs to one process of a host."""

import pytest

from shared.errors import ServerFailed
from worker.slot import held, slot_name

ONE, OTHER = "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6380/0"


def test_a_name_is_held_by_one_and_free_again_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with (
        held("gpu-0", redis_url=ONE),
        held("gpu-1", redis_url=ONE),
        pytest.raises(ServerFailed, match="another worker on this host is 'gpu-0'"),
    ):
        held("gpu-0", redis_url=ONE).__enter__()

    with held("gpu-0", redis_url=ONE):
        pass


def test_two_services_on_one_host_do_not_share_names(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with held("worker-0", redis_url=ONE), held("worker-0", redis_url=OTHER):
        pass


def test_a_configured_name_is_the_slots_name():
    assert slot_name("gpu-0", "cuda:0") == "gpu-0"
    assert slot_name(None, "gpu-1234").endswith("/gpu-1234")
