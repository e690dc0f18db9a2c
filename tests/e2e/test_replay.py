"""`flux2 replay` from a training config to a comparison."""

import io

import pytest
from PIL import Image

from flux2_client.client import Client
from flux2_client.replay import run_replay
from shared.console import LineConsole
from shared.demo_model import DEMO_ADAPTER
from shared.errors import ApiError

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
