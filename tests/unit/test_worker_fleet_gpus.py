import pytest

from shared.errors import CheckpointError
from worker.fleet.gpus import choose_gpus, group_gpus


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("all", [0, 1, 2, 3]),
        ("1", [0]),
        ("3", [0, 1, 2]),
        ("4", [0, 1, 2, 3]),
        ("2,", [2]),
        ("0,2", [0, 2]),
        ("3, 1", [3, 1]),
    ],
)
def test_a_text_names_gpus(wanted, chosen):
    assert list(choose_gpus(wanted, count=4)) == chosen


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        ("0", "write 1 to 4, or --device cuda:0 for one GPU"),
        ("5", "this host has 4"),
        ("1,4", "there is no GPU 4; this host has 0 to 3"),
        ("1,1", "names a GPU twice"),
        ("", "write all, a number of GPUs, or indices"),
        (",", "write all, a number of GPUs, or indices"),
        ("-1", "write all, a number of GPUs, or indices"),
        ("cuda:1", "write all, a number of GPUs, or indices"),
        ("1,,2", "write all, a number of GPUs, or indices"),
        ("²", "write all, a number of GPUs, or indices"),
        ("99999999999", "write all, a number of GPUs, or indices"),
    ],
)
def test_a_text_that_names_no_gpus_of_the_host_is_refused_with_a_remedy(wanted, remedy):
    with pytest.raises(CheckpointError, match=remedy):
        choose_gpus(wanted, count=4)


def test_a_host_without_gpus_gets_advice():
    with pytest.raises(CheckpointError, match="use --device cpu or --simulate"):
        choose_gpus("all", count=0)


def test_gpus_form_slots_in_their_order():
    assert group_gpus([0, 2, 5, 3], per_slot=2) == [[0, 2], [5, 3]]
    assert group_gpus(range(4), per_slot=4) == [range(4)]


def test_gpus_that_would_be_left_over_are_refused():
    with pytest.raises(CheckpointError, match="--gpus-per-slot 2: 3 GPUs cannot be divided; choose a multiple of 2"):
        group_gpus(range(3), per_slot=2)
