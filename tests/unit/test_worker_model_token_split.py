"""Tokens are divided among devices so that no product changes its bits."""

import pytest
import torch

from worker.model.token_split import CPU_LIMITS, GPU_LIMITS, RowLimits, split_tokens

CPU = torch.device("cpu")


def test_text_and_image_are_cut_into_parts_that_differ_by_one_row_at_most():
    split = split_tokens(text=5, image=7, devices=2, limits=CPU_LIMITS)

    assert split.single.text == (range(3), range(3, 5))
    assert split.single.image == (range(5, 9), range(9, 12))
    assert split.double == split.single
    assert split.single.length == 12


def test_each_row_knows_its_device_and_its_place_there():
    sequence = split_tokens(text=3, image=4, devices=2, limits=CPU_LIMITS).single

    assert sequence.rows(0, CPU).tolist() == [0, 1, 3, 4]
    assert sequence.rows(1, CPU).tolist() == [2, 5, 6]
    assert sequence.owners(CPU).tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert sequence.local_rows(CPU).tolist() == [0, 1, 0, 2, 3, 1, 2]


def test_text_with_too_few_rows_is_computed_by_every_device_in_double_blocks_only():
    split = split_tokens(text=3, image=4, devices=2, limits=RowLimits(double=2, single=1))

    assert split.double.text == (range(3), range(3))
    assert split.double.is_text_whole
    assert split.double.owners(CPU).tolist() == [-1, -1, -1, 0, 0, 1, 1]
    assert split.double.local_rows(CPU).tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert split.single.text == (range(2), range(2, 3))
    assert not split.single.is_text_whole


# 512 text tokens; images of 1024x1024, 2048x2048, 768x768, 512x512, 512x768, 1040x1040 and 256x256.
@pytest.mark.parametrize(
    ("image", "used"),
    [
        (4096, {2: 2, 4: 4, 8: 8}),
        (16384, {2: 2, 4: 4, 8: 8}),
        (2304, {2: 2, 4: 4, 8: 4}),  # eight parts of 288 rows change bits
        (1024, {2: 2, 4: 2, 8: 2}),  # four parts of 256 + 128 rows are too few for single blocks
        (1536, {2: 2, 4: 4, 8: 4}),  # 384 + 128 are just enough
        (4225, {2: 2, 4: 4, 8: 8}),
        (256, {2: 1, 4: 1, 8: 1}),
    ],
)
def test_small_images_use_fewer_gpus(image, used):
    found = {n: split_tokens(text=512, image=image, devices=n, limits=GPU_LIMITS).devices for n in used}

    assert found == used


def test_the_text_of_a_prompt_is_halved_for_two_gpus_and_whole_for_more():
    halved, whole = (split_tokens(text=512, image=4096, devices=n, limits=GPU_LIMITS) for n in (2, 4))

    assert halved.double.text == (range(256), range(256, 512))
    assert whole.double.is_text_whole
    assert [len(part) for part in whole.single.text] == [128] * 4
