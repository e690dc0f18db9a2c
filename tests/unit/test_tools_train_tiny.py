"""What the demonstration model is trained on and through: pictures with captions, and latents that decode to them."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.pictures import figures
from tools.train_tiny.data import FIELDS, SLOTS, TRIGGER, Picture, picture, subject
from tools.train_tiny.draw import draw
from tools.train_tiny.feed import SHORT, Feed, encoder
from tools.train_tiny.flow import classifier_free
from tools.train_tiny.models import LIVE, REFERENCE, encode_pictures, pack_patches, with_reference
from worker.checkpoint.locate import ModuleFiles
from worker.model.load import load_autoencoder
from worker.model.text_encoder import load_tokenizer
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


def test_a_seed_names_a_picture_and_its_caption():
    assert picture(random.Random(5)) == picture(random.Random(5))
    assert len({picture(random.Random(seed)).caption for seed in range(100)}) > 95


def test_the_subject_always_has_its_trigger_and_fits_the_table():
    made = [subject(random.Random(seed)) for seed in range(50)]

    assert all(TRIGGER in one.caption for one in made)
    assert all(0 < len(one.figures) <= SLOTS for one in made)


def test_the_drawing_is_what_the_table_says():
    made = Picture()
    made.add("diamond", 0.4, -0.3, 0.35, (45 / 255, 90 / 255, 225 / 255))

    [found] = figures(to_image(draw(*table(made), height=200, width=200)[0]))

    assert (found.colour, found.shape) == ("blue", "diamond")
    assert (found.x, found.y) == pytest.approx((0.4, -0.3), abs=0.03)


def test_captions_that_are_scored_are_never_drawn(tokenizer):
    queue = ["A red heart.", "a red heart", "a blue ring"]

    def make(rng):
        return Picture(caption=queue.pop(0) if queue else "a green dot", background=[0.0] * 7)

    chunk = next(iter(Feed(tokenizer, make, held=frozenset({"a red heart"}), seed=0)))

    first = tokenize(tokenizer, "a blue ring")[0][0, -SHORT:]
    assert chunk["ids"][0].tolist() == first.tolist()
    held = {tuple(tokenize(tokenizer, prompt)[0][0, -SHORT:].tolist()) for prompt in ("A red heart.", "a red heart")}
    assert held.isdisjoint(map(tuple, chunk["ids"].tolist()))


def test_the_quick_encoding_is_the_products(tokenizer):
    prompt = "two violet plus signs, sks, on a teal to pink gradient"

    quick = encoder(tokenizer)([prompt])

    assert quick[0].tolist() == tokenize(tokenizer, prompt)[0][0, -SHORT:].tolist()


def test_the_reference_that_the_decoder_expects_is_what_the_stored_mean_gives(autoencoder):
    packed = pack_patches(with_reference(torch.zeros(1, LIVE, 4, 6)))

    assert (packed[0, 4 * REFERENCE :] == autoencoder.bn.running_mean[4 * REFERENCE :, None, None]).all()
    assert autoencoder.bn.running_var[4 * LIVE :].max() == 0


def test_pictures_pass_through_the_latents_whatever_the_dead_channels_hold(autoencoder):
    figures_, backgrounds = table(picture(random.Random(11)))
    images = draw(figures_, backgrounds, height=128, width=128)
    live = encode_pictures(autoencoder, images)
    noise = torch.randn(live.shape, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        again = decode(autoencoder, torch.cat([live, noise], dim=1))

    assert (again - images).abs().mean() < 0.04


def test_guidance_one_is_the_model_itself_and_four_is_two_and_a_half():
    # 1 + (4 - 1) / 2 = 2.5; the weight stops at 5, which is reached at 9.
    assert classifier_free(torch.tensor([1.0, 4.0, 9.0, 20.0])).tolist() == [1.0, 2.5, 5.0, 5.0]
