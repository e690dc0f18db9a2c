"""`flux2 replay` from a training config to a comparison."""

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from flux2_client.client import Client
from flux2_client.replay import run_replay
from shared.console import LineConsole
from shared.demo_model import DEMO_ADAPTER
from shared.errors import ApiError, ConfigImagesNotFound
from shared.job import AdapterRef, ReferenceRef
from shared.settings import ModelSettings
from worker.model.load import load_components
from worker.rendering.renderer import Renderer
from worker.rendering.toolkit_checkout import load_toolkit

# A checkout of AI Toolkit; read at import, because tests run without the settings of the environment.
TOOLKIT = os.environ.get("AI_TOOLKIT_PATH")

CONFIG = """
config:
  name: my_lora
  process:
    - trigger_word: sks
      model: {arch: flux2}
      sample:
        {format: png, seed: 5, walk_seed: true, width: 128, height: 96, sample_steps: 2, guidance_scale: 4,
         prompts: ["[trigger] a", "b --m 0.5"]}
"""


def test_comparing_a_replay_with_its_own_images_finds_no_difference(client, tmp_path):
    config, samples = tmp_path / "config.yaml", tmp_path / "samples"
    config.write_text(CONFIG)
    samples.mkdir()
    console = LineConsole(file=io.StringIO(), width=120)
    run_replay(console, client, config, lora=DEMO_ADAPTER, samples=None, output=tmp_path / "first")
    for index in range(2):
        (tmp_path / "first" / f"sample-{index}.png").rename(samples / f"17__000000500_{index}.png")

    found = run_replay(console, client, config, lora=DEMO_ADAPTER, samples=samples, output=tmp_path / "second")

    assert [(alike.mean, alike.maximum) for alike in found] == [(0.0, 0), (0.0, 0)]
    assert (tmp_path / "second" / "contact-sheet.png").exists()


def test_samples_that_do_not_pair_with_the_configs_are_named(client, tmp_path):
    config, samples = tmp_path / "config.yaml", tmp_path / "samples"
    config.write_text(CONFIG)
    samples.mkdir()
    Image.new("RGB", (128, 96)).save(samples / "17__000000500_0.png")
    Image.new("RGB", (128, 96)).save(samples / "17__000000500_7.png")
    output = io.StringIO()

    found = run_replay(
        LineConsole(file=output), client, config, lora=DEMO_ADAPTER, samples=samples, output=tmp_path / "out"
    )

    assert len(found) == 1
    printed = output.getvalue()
    assert "1 of the trainer's pictures are not compared" in printed
    assert "the config has 2 samples, from 0 to 1: 17__000000500_7.png" in printed
    assert (
        "1 of the config's 2 samples have no picture at the trainer's last step: *_000000500_1.*; names are" in printed
    )


def test_an_unreachable_api_is_reported_as_one_error(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    with Client("http://127.0.0.1:1") as client, pytest.raises(ApiError, match="cannot be reached"):
        run_replay(LineConsole(file=io.StringIO()), client, config, lora=DEMO_ADAPTER, samples=None, output=tmp_path)


# The trainer's host; the images are in another folder here.
IMAGE_CONFIG = """
config:
  name: my_edit
  process:
    - trigger_word: sks
      model: {arch: flux2}
      datasets: [{folder_path: /workspace/sets/out, control_path: /workspace/sets/in}]
      sample:
        format: png
        seed: 5
        walk_seed: true
        width: 128
        height: 96
        sample_steps: 2
        guidance_scale: 4
        samples:
          - {prompt: "[trigger] a --ctrl_img /workspace/sets/in/rgba_80x112.png", ctrl_img_1: /workspace/never/read.png}
          - prompt: b
            ctrl_img_3: 'C:\\sets\\in\\exif6_120x80.jpg'
            ctrl_img_1: /workspace/sets/in/rgba_80x112.png
          - {prompt: c, ctrl_img_2: /workspace/sets/in/palette_112x97.png}
          - {prompt: d}
"""
# By sample: prompt, seed, and the images in the order in which the trainer encodes them.
EXPECTED = [
    ("sks a", 5, {1: "rgba_80x112.png"}),
    ("b", 6, {1: "rgba_80x112.png", 3: "exif6_120x80.jpg"}),
    ("c", 7, {2: "palette_112x97.png"}),
    ("d", 8, {}),
]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "edit.yaml"
    path.write_text(IMAGE_CONFIG)
    return path


@pytest.fixture
def render(stack, goldens, item):
    """Render an item with the stack's model in this process, on as many threads as its workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in (goldens / "reference/images").iterdir()}
    settings = ModelSettings(
        path=str(stack.demo_checkpoint), text_encoder=str(stack.demo_checkpoint / "text_encoder"), precision="fp32"
    )
    renderer = Renderer(
        load_components(settings, device=torch.device("cpu"), hf_token=None),
        prompt_cache=4,
        load_reference=lambda sha256: files[sha256].read_bytes(),
        toolkit=load_toolkit(Path(TOOLKIT)) if TOOLKIT else None,
    )
    adapter = stack.demo_adapter.read_bytes()
    identity = {"sha256": hashlib.sha256(adapter).hexdigest(), "size_bytes": len(adapter)}

    def render(prompt, seed, images):
        digests = {path.name: sha256 for sha256, path in files.items()}
        spec = item(
            prompt=prompt,
            seed=seed,
            width=128,
            height=96,
            requested_width=128,
            requested_height=96,
            adapters=(AdapterRef(path=DEMO_ADAPTER, **identity, multiplier=1.0),),
            # AI Toolkit's own code prepares and encodes the images, if there is a checkout.
            engine="ai-toolkit" if TOOLKIT else "exact",
            references=tuple(ReferenceRef(slot=slot, sha256=digests[name]) for slot, name in images.items()),
        )
        return renderer.render(spec, [stack.demo_adapter], on_progress=lambda progress: None).image

    yield render
    torch.set_num_threads(threads)


def read_picture(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def test_a_replay_with_reference_images_gives_the_pixels_of_the_trainers_engine(
    client, config, goldens, render, tmp_path
):
    output = io.StringIO()

    run_replay(
        LineConsole(file=output, width=200),
        client,
        config,
        lora=DEMO_ADAPTER,
        samples=None,
        output=tmp_path / "out",
        image_folders=[goldens / "reference/images"],
    )

    assert "3 reference images were uploaded" in output.getvalue()
    pictures = [read_picture(tmp_path / "out" / f"sample-{index}.png") for index in range(4)]
    expected = [render(*sample) for sample in EXPECTED]
    assert [ours.tobytes() == theirs.tobytes() for ours, theirs in zip(pictures, expected, strict=True)] == [True] * 4
    # Each image has an effect, and the order of two as well.
    prompt, seed, images = EXPECTED[1]
    swapped = dict(zip(images, reversed(images.values()), strict=True))
    assert pictures[1].tobytes() not in (render(prompt, seed, {}).tobytes(), render(prompt, seed, swapped).tobytes())


def test_the_contact_sheet_shows_the_reference_images_in_front(client, config, goldens, tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    for index in range(4):
        Image.new("RGB", (128, 96)).save(samples / f"17__000000500_{index}.png")
    output = io.StringIO()

    found = run_replay(
        LineConsole(file=output, width=200),
        client,
        config,
        lora=DEMO_ADAPTER,
        samples=samples,
        output=tmp_path / "out",
        image_folders=[goldens / "reference/images"],
    )

    assert len(found) == 4
    assert "contact sheet (reference images, trainer's, ours, difference)" in output.getvalue()
    sheet = read_picture(tmp_path / "out" / "contact-sheet.png")
    # 80x112 in 128x96 is 69 wide; 120x80 becomes 112x80, 128 wide, as is the 112x96 of the palette in the first column.
    assert sheet.size == (112 + 128 + 3 * 128 + 4 * 8, 4 * 96 + 3 * 8)


def test_reference_images_that_are_not_on_this_host_are_named_and_nothing_is_rendered(client, config, tmp_path):
    jobs = len(list(client.requests()))

    with pytest.raises(ConfigImagesNotFound, match="3 of the config's 3 reference images cannot be used") as refused:
        run_replay(
            LineConsole(file=io.StringIO()),
            client,
            config,
            lora=DEMO_ADAPTER,
            samples=None,
            output=tmp_path / "out",
            image_folders=[tmp_path],
        )

    assert "give their folder with --images FOLDER:\n  /workspace/sets/in/rgba_80x112.png" in str(refused.value)
    assert len(list(client.requests())) == jobs
