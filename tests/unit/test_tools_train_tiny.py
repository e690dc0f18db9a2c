"""The demonstration model's training data: pictures match their captions, and latents decode to the pictures."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.pictures import figures
from tools.train_tiny.data import FIELDS, SLOTS, TRIGGER, Picture, random_picture, random_subject
from tools.train_tiny.drawing import draw
from tools.train_tiny.edits import KINDS, random_edit
from tools.train_tiny.feed import CAPTION_TOKENS, Feed, quick_tokenizer
from tools.train_tiny.flow import classifier_free_weight
from tools.train_tiny.models import (
    LIVE_CHANNELS,
    REFERENCE_CHANNEL,
    add_reference_channel,
    encode_pictures,
    pack_patches,
)
from worker.checkpoint.locate import ModuleFiles
from worker.model.modules import load_autoencoder
from worker.model.tokenizer import load_tokenizer
from worker.rendering.decode import decode, to_image
from worker.rendering.prompt_encoder import tokenize

SHIPPED = Path(__file__).parents[2] / "worker/model/demo_checkpoint"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SHIPPED / "text_encoder")


@pytest.fixture(scope="module")
def autoencoder():
    files = ModuleFiles("bfl", (SHIPPED / "ae.safetensors",))
    return load_autoencoder(files, device=torch.device("cpu"), dtype=torch.float32)


def table(made):
    figures = torch.zeros(1, SLOTS, FIELDS)
    figures[0, : len(made.figures)] = torch.tensor(made.figures)
    return figures, torch.tensor([made.background])


def test_a_seed_determines_a_picture_and_its_caption():
    assert random_picture(random.Random(5)) == random_picture(random.Random(5))
    assert len({random_picture(random.Random(seed)).caption for seed in range(100)}) > 95


def test_the_subject_always_has_its_trigger_and_fits_the_table():
    made = [random_subject(random.Random(seed)) for seed in range(50)]

    assert all(TRIGGER in one.caption for one in made)
    assert all(0 < len(one.figures) <= SLOTS for one in made)


def test_a_drawn_picture_shows_the_figure_in_its_table():
    made = Picture()
    made.add("diamond", 0.4, -0.3, 0.35, (45 / 255, 90 / 255, 225 / 255))

    [found] = figures(to_image(draw(*table(made), height=200, width=200)[0]))

    assert (found.colour, found.shape) == ("blue", "diamond")
    assert (found.x, found.y) == pytest.approx((0.4, -0.3), abs=0.03)


def test_an_edit_changes_one_property_of_a_figure_and_its_instruction_names_the_new_value_alone():
    edits = [random_edit(random.Random(seed)) for seed in range(60)]

    assert {edit.kind for edit in edits} == set(KINDS)
    for edit in edits:
        [old], [new] = edit.before.figures, edit.after.figures
        changed = {
            "colour": old[6:9] != new[6:9],
            "background": edit.before.background != edit.after.background,
        }
        assert [kind for kind, differs in changed.items() if differs] == [edit.kind]
        assert old[:6] == new[:6]
        assert edit.shape not in edit.instruction


def test_edits_of_the_score_are_never_used_for_training():
    def changes(*, held_out):
        edits = (random_edit(random.Random(seed), held_out=held_out) for seed in range(150))
        return {
            (edit.shape, figures(to_image(draw(*table(edit.before), height=128, width=128)[0]))[0].colour, edit.colour)
            for edit in edits
            if edit.kind == "colour"
        }

    trained, scored = changes(held_out=False), changes(held_out=True)

    assert min(len(trained), len(scored)) > 40
    assert not trained & scored


def test_scored_captions_are_never_used_for_training(tokenizer):
    queue = ["A red heart.", "a red heart", "a blue ring"]

    def make(rng):
        return Picture(caption=queue.pop(0) if queue else "a green dot", background=[0.0] * 7)

    chunk = next(iter(Feed(tokenizer, make, excluded=frozenset({"a red heart"}), seed=0)))

    first = tokenize(tokenizer, "a blue ring")[0][0, -CAPTION_TOKENS:]
    assert chunk["ids"][0].tolist() == first.tolist()
    excluded = {
        tuple(tokenize(tokenizer, prompt)[0][0, -CAPTION_TOKENS:].tolist())
        for prompt in ("A red heart.", "a red heart")
    }
    assert excluded.isdisjoint(map(tuple, chunk["ids"].tolist()))


def test_the_quick_tokenizer_equals_the_workers(tokenizer):
    prompt = "two violet plus signs, sks, on a teal to pink gradient"

    quick = quick_tokenizer(tokenizer)([prompt])

    assert quick[0].tolist() == tokenize(tokenizer, prompt)[0][0, -CAPTION_TOKENS:].tolist()


def test_the_stored_mean_supplies_the_reference_channel_of_the_decoder(autoencoder):
    packed = pack_patches(add_reference_channel(torch.zeros(1, LIVE_CHANNELS, 4, 6)))

    assert (
        packed[0, 4 * REFERENCE_CHANNEL :] == autoencoder.bn.running_mean[4 * REFERENCE_CHANNEL :, None, None]
    ).all()
    assert autoencoder.bn.running_var[4 * LIVE_CHANNELS :].max() == 0


def test_pictures_survive_encoding_whatever_the_unused_channels_hold(autoencoder):
    figures_, backgrounds = table(random_picture(random.Random(11)))
    images = draw(figures_, backgrounds, height=128, width=128)
    live = encode_pictures(autoencoder, images)
    noise = torch.randn(live.shape, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        again = decode(autoencoder, torch.cat([live, noise], dim=1))

    assert (again - images).abs().mean() < 0.04


def test_guidance_one_gives_weight_one_and_four_gives_two_and_a_half():
    # 1 + (4 - 1) / 2 = 2.5; the weight stops at 5, which is reached at 9.
    assert classifier_free_weight(torch.tensor([1.0, 4.0, 9.0, 20.0])).tolist() == [1.0, 2.5, 5.0, 5.0]
