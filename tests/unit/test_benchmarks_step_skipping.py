"""The benchmark of step skipping renders in every way, and sums up what it has measured."""

import math
from dataclasses import replace

import pytest
from diffusers.hooks import TaylorSeerCacheConfig

from benchmarks.step_skipping import (
    SIZES,
    Case,
    Difference,
    Group,
    differences_table,
    measure,
    open_model,
    prediction_table,
)
from worker.model.demo_model import STYLES

CASE = Case(Group.START, "a red heart", 1, SIZES[0])
# Computes the first step and the third of five.
SKIPS_ALMOST_ALL = TaylorSeerCacheConfig(disable_cache_before_step=1, use_lite_mode=True)


@pytest.fixture(scope="module")
def model():
    with open_model() as model:
        yield model


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_way_takes_the_passes_that_it_saves_and_gives_another_image(model):
    found = measure(model, [CASE], passes=11)

    assert set(found) == {"fewer steps", "MagCache", "TaylorSeer"}
    for [difference] in found.values():
        assert difference.passes == 11
        assert 0 < difference.error < 0.5
        assert 20 < difference.psnr_db < math.inf


def test_neither_a_cache_nor_an_adapter_changes_the_next_image(model):
    before = model.render(CASE, steps=5)

    changed = model.render(replace(CASE, adapter=STYLES[0]), steps=5, skipping=SKIPS_ALMOST_ALL)

    assert model.passes == 2
    assert not changed.equal(before)
    assert model.render(CASE, steps=5).equal(before)
    assert model.passes == 5


def test_the_tables_state_the_spread_and_what_the_images_at_the_start_predict():
    errors = {
        Group.START: (0.01, 0.02, 0.03),
        Group.PROMPT: (0.02, 0.04),  # 0.04 is twice the median at the start, and above its largest
        Group.SIZE: (0.025, 0.01),  # 0.01 is half the median at the start
        Group.ADAPTER: (0.028,),
    }
    found = {"a way": [Difference(group, 15, error, 40.0) for group, all_ in errors.items() for error in all_]}

    [spread] = [cells(line) for line in list(differences_table(found))[2:]]
    later = [cells(line) for line in list(prediction_table(found))[2:]]

    # Sorted: 0.01, 0.01, 0.02, 0.02, 0.025, 0.028, 0.03, 0.04.
    assert spread == [
        "a way", "15", "0.0100", "0.0225", "0.0400", "0.0400", "1.78", "40.0 dB", "40.0 dB",
    ]  # fmt: skip
    assert later == [
        ["a way", "other prompts and seeds", "1.50", "1 of 2", "1 of 2"],
        ["a way", "another size", "0.88", "1 of 2", "0 of 2"],
        ["a way", "an adapter", "1.40", "0 of 1", "0 of 1"],
    ]
