"""Previews show what an image becomes, change no bit of it, and cost nothing while nobody wants them."""

import pytest
import torch
from PIL import Image

from shared.demo_model import PROMPTS
from shared.job import Progress
from shared.settings import ModelSettings
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering import latent_preview
from worker.rendering.latent_preview import LatentPreview, LatentProjection, Previewer, samples
from worker.rendering.renderer import Renderer


class Sink:
    """Wants a preview after each second step, and keeps them."""

    def __init__(self, *, is_wanted=True):
        self.is_wanted = is_wanted
        self.taken = []

    def is_due(self, step, steps):
        return self.is_wanted and step % 2 == 0 and step < steps

    def offer(self, preview, *, step, steps):
        self.taken.append((step, steps, preview))


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    model = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
    return load_components(model, device=torch.device("cpu"), hf_token=None)


@pytest.fixture(scope="module")
def renderer(demo):
    return Renderer(demo, prompt_cache=4)


@pytest.fixture(scope="module")
def projection(renderer):
    return renderer._previewer._projection


def test_the_fit_explains_most_of_what_the_demonstration_model_draws(demo, renderer, projection, item, monkeypatch):
    finals, decode = [], renderer._engines["exact"].decode
    monkeypatch.setattr(renderer._engines["exact"], "decode", lambda latents: finals.append(latents) or decode(latents))
    for prompt in PROMPTS[1:3]:
        renderer.render(item(prompt=prompt, width=128, height=128, num_inference_steps=6), [], on_progress=ignore)

    with torch.no_grad():
        known, wanted = (
            torch.cat(parts) for parts in zip(*(samples(demo.autoencoder, z) for z in finals), strict=True)
        )
    found = known.float() @ projection.weights[:-1] + projection.weights[-1]

    residual, total = (found - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()
    assert 1 - residual / total > 0.8


def test_an_image_has_the_same_bits_with_previews_as_without(renderer, item):
    sink, spec = Sink(), item(prompt=PROMPTS[1], width=64, height=96, num_inference_steps=6)
    plain = renderer.render(spec, [], on_progress=ignore).image.tobytes()

    watched = renderer.render(spec, [], on_progress=ignore, previews=sink)

    assert watched.image.tobytes() == plain
    assert [(step, steps) for step, steps, _ in sink.taken] == [(2, 6), (4, 6)]
    late = sink.taken[-1][2]
    assert late.is_ready
    # An eighth of the image's size.
    assert (late.image().mode, late.image().size) == ("RGB", (8, 12))


@pytest.mark.parametrize("sink", [None, Sink(is_wanted=False)])
def test_nothing_is_calculated_while_nobody_wants_a_preview(demo, renderer, item, monkeypatch, sink):
    monkeypatch.setattr(renderer._previewer, "preview", lambda *_, **__: pytest.fail("a preview was made"))

    renderer.render(item(num_inference_steps=4), [], on_progress=ignore, previews=sink)


def test_an_image_whose_preview_finds_no_memory_is_finished(renderer, item, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    sink, spec = Sink(), item(num_inference_steps=4)
    monkeypatch.setattr(LatentProjection, "colors", fail)

    rendered = renderer.render(spec, [], on_progress=ignore, previews=sink)

    assert (sink.taken, rendered.pipeline.decode) == ([], "whole")


def test_a_model_whose_fit_finds_no_memory_has_no_previews(demo, monkeypatch, caplog):
    def fail(components):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(latent_preview, "fit_projection", fail)
    previewer = Previewer(demo)

    assert [previewer.preview(lambda: torch.zeros(1, 1, 128), rows=1, columns=1) for _ in range(2)] == [None, None]
    # It is not tried again at each step.
    assert [record.getMessage() for record in caplog.records] == ["no previews: their fit failed"]


def test_each_quarter_of_a_token_has_its_own_color():
    # Channel 0 is the red of the four quarters, row by row; the constant makes all else black.
    weights = torch.zeros(2, 12)
    weights[0, :4] = torch.tensor([2.0, 1.0, 0.0, 0.0])
    weights[1] = -1

    colors = LatentProjection(weights).colors(torch.tensor([[[0.0], [1.0]]]), rows=1, columns=2)

    # -1 is 0 and 1 is 255; 2 * 1 - 1 = 1 and 1 * 1 - 1 = 0, which is 127.5 and rounds to the even 128.
    red = [[0, 0, 255, 128], [0, 0, 0, 0]]
    assert colors[..., 0].tolist() == red
    assert not colors[..., 1:].any()


def test_a_preview_has_at_most_128_pixels_on_its_longer_side():
    image = LatentPreview(torch.zeros(256, 64, 3, dtype=torch.uint8)).image()

    assert isinstance(image, Image.Image)
    assert image.size == (32, 128)
