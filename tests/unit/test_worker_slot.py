"""A slot's name belongs to one process of a host."""

import pytest

from shared.errors import ServerFailed
from worker.slot import held, slot_name


def test_a_name_is_held_by_one_and_free_again_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with held("gpu-0"), held("gpu-1"), pytest.raises(ServerFailed, match="another worker on this host is 'gpu-0'"):
        held("gpu-0").__enter__()

    with held("gpu-0"):
        pass


def test_a_configured_name_is_the_slots_name():
    assert slot_name("gpu-0", "cuda:0") == "gpu-0"
    assert slot_name(None, "gpu-1234").endswith("/gpu-1234")
