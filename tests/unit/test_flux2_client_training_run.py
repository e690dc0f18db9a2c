"""The folder of a training run, and the sweep that options describe."""

import re

import pytest
from PIL import Image

from flux2_client.request_source import Description
from flux2_client.sweeps.sweep_request import SweepAxes, compose_sweep
from flux2_client.sweeps.training_run import read_training_run
from shared.errors import ConfigImagesNotFound, TrainingRunRefused

CONFIG = """
job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      training_folder: output
      trigger_word: sks
      network: {type: lora}
      model: {arch: flux2}
      sample:
        {format: png, seed: 5, walk_seed: true, width: 256, height: 192, sample_steps: 4, guidance_scale: 3,
         prompts: ["[trigger] a fox", "a house --w 128"]}
"""


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "output" / "my_lora"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    for name in (
        *("my_lora", "my_lora_000001000", "my_lora_000000250", "my_lora_000000500"),
        # Neither is a checkpoint of this run.
        *("my_lora_final_000000100", "other_000000100"),
    ):
        (folder / f"{name}.safetensors").write_bytes(b"")
    (folder / "optimizer.pt").write_bytes(b"")
    return folder


def describe(*prompts, file=None, **fields):
    """Describe a request as the command's options do."""
    entries = fields.pop("entries", ())
    return Description(
        prompts=prompts or None,
        prompts_file=file,
        loras=None,
        seeds=None,
        size=None,
        sigmas=None,
        prompt_fields={},
        request_fields=fields,
        entries=entries,
    )


def test_a_run_has_its_checkpoints_in_the_order_of_steps_and_the_samples_of_its_config(run_folder):
    run = read_training_run(run_folder)

    assert [checkpoint.label for checkpoint in run.checkpoints] == ["250", "500", "1000", "final"]
    assert [checkpoint.path.name for checkpoint in run.checkpoints][-2:] == [
        "my_lora_000001000.safetensors", "my_lora.safetensors",
    ]  # fmt: skip
    common = {"neg": "", "height": 192, "sample_steps": 4, "guidance_scale": 3.0}
    assert run.prompts == (
        common | {"prompt": "sks a fox", "width": 256, "seed": 5},
        common | {"prompt": "a house", "width": 128, "seed": 6},
    )
    assert run.multipliers == (1.0,)
    assert run.fields == {"model": "flux2", "adapter_mode": None, "trigger_word": "sks"}


@pytest.mark.parametrize("place", ["output/my_lora/config.yaml", "my_lora.yaml", "configs/my_lora.yaml"])
def test_a_config_leads_to_its_run(place, run_folder, tmp_path):
    config = tmp_path / place
    config.parent.mkdir(exist_ok=True)
    config.write_text(CONFIG)

    run = read_training_run(config)

    assert {checkpoint.path.parent for checkpoint in run.checkpoints} == {run_folder}


def test_a_run_without_checkpoints_says_how_they_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)

    with pytest.raises(TrainingRunRefused, match=r"'my_lora' are in .*; they are named my_lora_000000500\.safetensors"):
        read_training_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config\.yaml cannot be read: No such file .*; give the folder that AI Toolkit wrote"),
        ("config: {name: a}", r"config\.yaml: config\.process is not a list"),
        (CONFIG.replace("flux2", "sdxl"), r"config\.yaml: .*arch is 'sdxl', which is not served"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)

    with pytest.raises(TrainingRunRefused, match=message):
        read_training_run(tmp_path)


def test_reference_images_of_the_samples_are_found_on_this_host(run_folder, tmp_path):
    config = run_folder / "config.yaml"
    config.write_text(CONFIG.replace("a house --w 128", "a house --ctrl_img /workspace/in/photo.png"))
    with pytest.raises(ConfigImagesNotFound, match=r"photo\.png"):
        read_training_run(run_folder)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "photo.png")

    run = read_training_run(run_folder, image_folders=[folder])

    assert [prompt.get("ctrl_img") for prompt in run.prompts] == [None, str(folder / "photo.png")]


def test_a_sweep_of_a_run_has_its_checkpoints_prompts_and_multiplier(run_folder):
    run = read_training_run(run_folder)

    composed = compose_sweep(describe(entries=run.prompts), SweepAxes(seeds="7,8"), run=run, with_base=True)

    body = composed.body
    assert body["checkpoints"][0] == {"path": None, "label": "base"}
    assert [checkpoint["label"] for checkpoint in body["checkpoints"][1:]] == ["250", "500", "1000", "final"]
    assert list(composed.files) == [1, 2, 3, 4]
    assert (body["multipliers"], body["seeds"], body["trigger_word"]) == ([1.0], [7, 8], "sks")
    assert [prompt["prompt"] for prompt in body["prompts"]] == ["sks a fox", "a house"]
    placed = composed.with_paths({path: f"upload:{path.stem}" for path in composed.files.values()})
    assert [checkpoint["path"] for checkpoint in placed["checkpoints"]] == [
        None, "upload:my_lora_000000250", "upload:my_lora_000000500", "upload:my_lora_000001000", "upload:my_lora",
    ]  # fmt: skip


def test_samples_at_several_multipliers_need_a_choice(run_folder):
    config = run_folder / "config.yaml"
    config.write_text(CONFIG.replace("a house --w 128", "a house --m 0.5"))
    run = read_training_run(run_folder)
    described = describe(entries=run.prompts)

    with pytest.raises(ValueError, match=re.escape("several multipliers; give --multiplier, e.g. 1,0.5")):
        compose_sweep(described, SweepAxes(), run=run)
    assert compose_sweep(described, SweepAxes(multipliers="0.8"), run=run).body["multipliers"] == [0.8]


def test_own_prompts_and_a_model_replace_those_of_the_run(run_folder):
    run = read_training_run(run_folder)

    body = compose_sweep(
        describe("[trigger] new", entries=run.prompts, model="flux2", trigger_word="ohwx"), SweepAxes(), run=run
    ).body

    assert body["prompts"] == [{"prompt": "[trigger] new"}]
    assert body["trigger_word"] == "ohwx"
    assert "multipliers" not in body


def test_options_become_axes_and_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.safetensors").write_bytes(b"")
    axes = SweepAxes(multipliers="0.6,1", seeds="1..3,9", sizes="512, 768x1024", steps="20,25", guidance_scales="3.5,4")

    composed = compose_sweep(
        describe("a"),
        axes,
        checkpoints=["job/a.safetensors", "late=job/b.safetensors", "own.safetensors", "mine=own.safetensors"],
    )

    assert composed.body["checkpoints"] == [
        {"path": "job/a.safetensors"},
        {"path": "job/b.safetensors", "label": "late"},
        {"path": "0/own.safetensors", "label": "own"},
        {"path": "0/own.safetensors", "label": "mine"},
    ]
    assert list(composed.files) == [2, 3]
    values = {name: composed.body[name] for name in ("multipliers", "seeds", "sizes", "steps", "guidance_scales")}
    assert values == {
        "multipliers": [0.6, 1.0],
        "seeds": [1, 2, 3, 9],
        "sizes": [{"width": 512, "height": 512}, {"width": 768, "height": 1024}],
        "steps": [20, 25],
        "guidance_scales": [3.5, 4.0],
    }


def test_an_address_with_an_equals_sign_has_no_label():
    composed = compose_sweep(describe("a"), SweepAxes(), checkpoints=["https://host.example/a.safetensors?v=1"])

    assert composed.body["checkpoints"] == [{"path": "https://host.example/a.safetensors?v=1"}]


@pytest.mark.parametrize(
    ("axes", "prompts", "message"),
    [
        (SweepAxes(), (), "nothing to render; give -p PROMPT, --prompts FILE, or --training-run FOLDER"),
        (SweepAxes(steps="20,x"), ("a",), "'20,x' is not a list of numbers; write e.g. 20,25"),
        (SweepAxes(multipliers="strong"), ("a",), "write e.g. 0.6,0.8,1"),
        (SweepAxes(sizes="1024,wide"), ("a",), "'wide' is not a size"),
    ],
)
def test_an_option_that_is_unsound_is_refused_with_an_example(axes, prompts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compose_sweep(describe(*prompts), axes)
