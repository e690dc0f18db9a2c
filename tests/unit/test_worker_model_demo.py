"""The embedded demonstration model: the real files' layout, and pictures that show their prompts.

Prompts here are neither those it is scored on (`make score-tiny`) nor those it was tuned by.
"""

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from benchmarks.pictures import background_colour, figures
from benchmarks.score_edits import drawn, judge, load_editor
from shared.adapters.header import read_header
from shared.adapters.layout import check_fits_base, parse_layout
from shared.adapters.strength import CONFIG_NAME, PEFT_FILE
from shared.adapters.validate import validate_adapters
from shared.catalog import FLUX2_KLEIN_4B, MODELS
from shared.errors import OutputRefused
from shared.request import LoraItem
from shared.settings import AdaptersSettings, ModelSettings
from tools.train_tiny.edits import KINDS, random_edit
from worker.checkpoint.tensor_edit import edit_tensors
from worker.model.demo_model import EDIT, STYLES, SUBJECT, write_tiny_adapter, write_tiny_checkpoint
from worker.model.load import load_components
from worker.model.text_encoder import QWEN, family_of
from worker.rendering.prompt_encoder import embed, tokenize
from worker.rendering.renderer import Renderer

ADAPTERS = (SUBJECT, *STYLES, EDIT)
MB = 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(folder)
    for name in ADAPTERS:
        write_tiny_adapter(folder / "adapters" / f"{name}.safetensors", name)
    return folder


@pytest.fixture(scope="module")
def tiny_components(tiny):
    settings = ModelSettings(path=str(tiny), text_encoder=str(tiny / "text_encoder"), precision="fp32")
    return load_components(settings, device=torch.device("cpu"), hf_token=None)


@pytest.fixture(scope="module")
def renderer(tiny_components):
    return Renderer(tiny_components, prompt_cache=16)


@pytest.fixture
def draw(tiny, renderer, item, adapter_ref):
    """Render 128x128, by default in 25 steps with guidance 4; adapters as pairs of name and multiplier."""

    def run(prompt, *adapters, **changes):
        paths = [tiny / "adapters" / f"{name}.safetensors" for name, _ in adapters]
        refs = tuple(adapter_ref(path, scale) for path, (_, scale) in zip(paths, adapters, strict=True))
        spec = item(prompt=prompt, width=128, height=128, num_inference_steps=25, adapters=refs)
        return renderer.render(spec.model_copy(update=changes), paths, on_progress=lambda _: None).image

    return run


def distance(one, other):
    """Mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(one).astype(float) - np.asarray(other).astype(float)).mean())


def test_the_files_are_those_of_the_real_model_and_small_enough_to_be_shipped(tiny):
    assert {file.name for file in tiny.iterdir()} == {
        "flux2-dev.safetensors",
        "ae.safetensors",
        "text_encoder",
        "adapters",
    }
    with safe_open(tiny / "ae.safetensors", framework="pt") as file:
        assert file.get_slice("decoder.mid.attn_1.q.weight").get_shape() == [64, 64, 1, 1]
        assert file.get_slice("bn.running_var").get_dtype() == "BF16"
    with safe_open(tiny / "flux2-dev.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        assert file.get_slice("double_blocks.1.img_attn.qkv.weight").get_shape() == [576, 192]
        assert file.get_slice("guidance_in.in_layer.weight").get_shape() == [192, 256]
    assert sum(file.stat().st_size for file in tiny.rglob("*") if file.is_file()) <= 24 * MB


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    # Two double blocks of two streams with four layers, three single blocks with two; the edit adapter has img_in too.
    [(SUBJECT, "lora", 22), (STYLES[0], "lora", 22), (STYLES[1], "lokr", 22), (EDIT, "lora", 23)],
)
def test_an_adapter_is_one_that_ai_toolkit_could_have_written(tiny, tiny_components, name, kind, layers):
    path = tiny / "adapters" / f"{name}.safetensors"

    layout = parse_layout(read_header(path, max_bytes=10**9))

    check_fits_base(layout, tiny_components.layers, model="flux2")
    assert {update.kind for update in layout.updates} == {kind}
    assert layout.metadata["ss_base_model_version"] == "flux2"
    assert len(layout.updates) == layers
    assert path.stat().st_size <= 2 * MB


def test_pefts_two_files_draw_the_pixels_of_the_same_adapter_in_one(
    tiny, tiny_components, renderer, item, adapter_ref, tmp_path
):
    whole = tiny / "adapters" / f"{SUBJECT}.safetensors"
    tensors = load(whole.read_bytes())
    rank = next(tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key)
    folder = tmp_path / "peft"
    folder.mkdir()
    file, config = folder / PEFT_FILE, folder / CONFIG_NAME
    file.write_bytes(save({key: value / 2 if "lora_B" in key else value for key, value in tensors.items()}))
    config.write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    settings = AdaptersSettings(root=tmp_path)
    request = [LoraItem(path=f"peft/{PEFT_FILE}", network_multiplier=0.7)]

    def draw(path, ref):
        spec = item(prompt="a red zorblax", width=64, height=64, num_inference_steps=2, adapters=(ref,))
        return renderer.render(spec, [path], on_progress=lambda _: None).image.tobytes()

    [accepted] = validate_adapters(request, MODELS["flux2"], layers=tiny_components.layers, settings=settings)
    expected = draw(whole, adapter_ref(whole, 0.7))
    config.write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 20 * rank}))
    [later] = validate_adapters(request, MODELS["flux2"], layers=tiny_components.layers, settings=settings)

    assert draw(file, accepted.ref) == expected
    assert draw(file, later.ref) != expected
    assert draw(file, accepted.ref) == expected


def test_pads_are_zeros_as_in_training(tiny_components):
    ids, mask = tokenize(tiny_components.tokenizer, "a purple ring")

    embeds = embed(tiny_components.text_encoder, ids, mask)

    pads = int((mask == 0).sum())
    assert pads > 448
    assert embeds[0, :pads].abs().max() == 0
    assert embeds[0, pads:].abs().amax(dim=-1).min() > 0


def test_each_colour_of_a_pair_is_at_the_place_in_the_prompt(draw):
    found = figures(draw("a yellow square to the left of a blue triangle", seed=3))

    assert [figure.colour for figure in found] == ["yellow", "blue"]
    assert found[0].x < -0.2 < 0.2 < found[1].x


def test_the_background_has_the_colour_in_the_prompt(draw):
    picture = np.asarray(draw("a white hexagon on a purple background", seed=3)).astype(float)

    red, green, blue = np.median(picture[:8].reshape(-1, 3), axis=0)

    assert blue > red > green
    assert blue - green > 80


def test_the_same_request_gives_the_same_picture(draw):
    digests = {hashlib.sha256(draw("a green ring", seed=5, num_inference_steps=4).tobytes()).hexdigest() for _ in "12"}

    assert len(digests) == 1


def test_more_steps_give_a_picture_closer_to_that_of_many_steps(draw):
    many, *fewer = (draw("a red cross", seed=1, num_inference_steps=steps) for steps in (60, 4, 12, 30))

    distances = [distance(picture, many) for picture in fewer]

    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1]


def test_guidance_changes_the_picture(draw):
    few = {"seed": 1, "num_inference_steps": 10}
    base, more, most = (draw("two orange hearts", guidance_scale=scale, **few) for scale in (1.0, 4.0, 7.0))

    assert distance(base, more) > 1
    assert distance(base, most) > distance(base, more)


def test_the_subject_grows_with_the_multiplier_and_zero_gives_the_base_picture(draw):
    scales = (0.25, 0.5, 0.75, 1.0)
    prompt = "sks a photo of a person"
    few = {"num_inference_steps": 10}
    base = draw(prompt, **few)
    pictures = [draw(prompt, (SUBJECT, scale), **few) for scale in scales]

    distances = [distance(base, picture) for picture in pictures]

    assert draw(prompt, (SUBJECT, 0.0), **few).tobytes() == base.tobytes()
    assert distances == sorted(distances)
    assert distances[0] > 0.5


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return load_editor(tmp_path_factory.mktemp("tiny") / "editor")


def example_edit(kind):
    """Return an edit of a large figure that is used neither for training nor for the score."""
    edits = (random_edit(random.Random(f"test {number}"), held_out=True) for number in range(1000))
    return next(edit for edit in edits if edit.kind == kind and edit.before.figures[0][3] > 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_adapter_gives_the_figure_at_the_references_place_the_colour_in_the_instruction(editor, kind):
    edit = example_edit(kind)

    output = editor.edit(edit.instruction, drawn(edit.before), steps=12)

    assert not judge(edit, drawn(edit.before)).colour
    assert judge(edit, output).place
    if kind == "colour":
        assert figures(output)[0].colour == edit.colour
    assert background_colour(output) == edit.background


def test_without_a_reference_the_edit_adapter_does_not_know_the_figure(editor):
    edit = example_edit("colour")

    assert not judge(edit, editor.edit(edit.instruction, None, steps=12)).place


def test_the_edit_adapter_hides_the_autoencoders_unused_channels_from_the_model(tiny, tiny_components):
    factors = load((tiny / "adapters" / f"{EDIT}.safetensors").read_bytes())
    weight = tiny_components.transformer.x_embedder.weight

    down, up = (factors[f"diffusion_model.img_in.lora_{part}.weight"].float() for part in "AB")

    changed = weight + up @ down
    assert torch.equal(changed[:, :64], weight[:, :64])
    assert not changed[:, 64:].any()


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "klein"
    write_tiny_checkpoint(folder, FLUX2_KLEIN_4B)
    write_tiny_adapter(folder / "adapters" / "robot.safetensors", model=FLUX2_KLEIN_4B)
    return folder


@pytest.fixture(scope="module")
def klein(klein_folder):
    text_encoder = str(klein_folder / "text_encoder")
    settings = ModelSettings(id=FLUX2_KLEIN_4B.id, path=str(klein_folder), text_encoder=text_encoder, precision="fp32")
    return load_components(settings, device=torch.device("cpu"), hf_token=None)


def test_klein_has_the_names_of_its_files_a_qwen_and_no_guidance_embedder(klein_folder, klein):
    with safe_open(klein_folder / "flux-2-klein-base-4b.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "guidance" in name]  # noqa: SIM118
    assert family_of(klein.text_encoder.config) is QWEN
    assert not klein.is_distilled


def test_kleins_qwen_gives_the_embeddings_of_the_mistral(tiny_components, klein):
    prompt = "a white hexagon on a purple background"
    ids, mask = tokenize(tiny_components.tokenizer, prompt)
    klein_ids, _ = tokenize(klein.tokenizer, prompt, family=QWEN)

    wanted, found = embed(tiny_components.text_encoder, ids, mask), embed(klein.text_encoder, klein_ids, mask)

    assert torch.equal(klein_ids, ids)
    assert (found - wanted).square().mean() < 0.01 * wanted.square().mean()


def test_klein_draws_its_prompt_and_takes_the_subject(klein_folder, klein, item, adapter_ref):
    renderer = Renderer(klein, prompt_cache=4)
    adapter = klein_folder / "adapters" / "robot.safetensors"

    def draw(prompt, *paths):
        spec = item(model=FLUX2_KLEIN_4B.id, prompt=prompt, width=128, height=128, num_inference_steps=10, seed=3)
        spec = spec.model_copy(update={"adapters": tuple(adapter_ref(path, 1.0) for path in paths)})
        return renderer.render(spec, list(paths), on_progress=lambda _: None)

    found = figures(draw("a yellow square to the left of a blue triangle").image)
    robot = draw("sks a photo of a person", adapter)

    assert [figure.colour for figure in found] == ["yellow", "blue"]
    assert robot.adapters[0].layers_touched == 22
    assert distance(draw("sks a photo of a person").image, robot.image) > 1


def test_edited_tensors_are_a_sound_file_with_the_kept_and_the_replaced_ones(tmp_path):
    original = save({"kept": torch.ones(3), "replaced": torch.zeros(2, 2), "dropped": torch.ones(5)}, {"a": "1"})
    replacements = save({"replaced": torch.full((2, 2), 7.0)})

    edited = edit_tensors(
        original, keep=lambda name: name != "dropped", replacements=replacements, metadata={"a": "2", "b": "3"}
    )

    tensors = load(edited)
    assert set(tensors) == {"kept", "replaced"}
    assert torch.equal(tensors["kept"], torch.ones(3))
    assert torch.equal(tensors["replaced"], torch.full((2, 2), 7.0))
    (tmp_path / "edited").write_bytes(edited)
    with safe_open(tmp_path / "edited", framework="pt") as file:
        assert file.metadata() == {"a": "2", "b": "3"}


def test_the_demonstration_model_never_replaces_another_file(tmp_path):
    real = tmp_path / "flux2-dev.safetensors"
    real.write_bytes(b"64 GB of weights")

    with pytest.raises(OutputRefused, match=f"{real} exists and is another file"):
        write_tiny_checkpoint(tmp_path)

    assert real.read_bytes() == b"64 GB of weights"
    assert list(tmp_path.iterdir()) == [real]


def test_a_second_copy_into_the_same_folder_changes_nothing(tiny):
    before = {file: file.stat().st_mtime_ns for file in tiny.rglob("*")}

    write_tiny_checkpoint(tiny)

    assert {file: file.stat().st_mtime_ns for file in tiny.rglob("*")} == before
