"""The placement is decided before anything is loaded, by the free memory, and does not change the bits."""

import shutil
from dataclasses import replace
from functools import partialmethod

import pytest
import torch

from shared.errors import CheckpointError, WeightsLost
from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.model import sizes as module
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.layer_streaming import CheckpointFiles, HostCopies
from worker.model.load import load_components
from worker.model.placement import WeightSizes, choose_placement
from worker.rendering.prompt_encoder import PromptEncoder
from worker.rendering.renderer import Renderer

CPU = torch.device("cpu")
GB = 1_000_000_000

# FLUX.2 [dev] in bfloat16: counted on modules without memory, built from the published configurations.
DEV = WeightSizes(
    transformer=64_446_562_304,
    autoencoder=168_000_000,
    text_encoder=34_687_518_720,
    text_embedding=1_342_177_280,
    text_layer=1_111_511_040,
    text_layers=30,
    adaptable=62_813_896_704,
)
DEV_FLOAT8 = replace(DEV, transformer=32_300_000_000, adaptable=0, text_encoder=18_020_000_000, text_layer=555_755_520)
DEV_FP8 = replace(DEV, transformer=33_000_000_000)
KLEIN_4B = WeightSizes(
    transformer=7_751_105_536,
    autoencoder=168_000_000,
    text_encoder=6_228_000_000,
    text_embedding=777_912_320,
    text_layer=201_900_000,
    text_layers=27,
    adaptable=7_400_000_000,
)


@pytest.mark.parametrize(
    ("free_gb", "sizes", "text_encoder", "base_weights"),
    [
        (180.0, DEV, "resident", "device"),
        (150.1, DEV, "streamed", "device"),
        (125.0, DEV, "streamed", "file"),
        (85.0, DEV, "streamed", "file"),
        (71.5, DEV, None, None),
        (85.0, DEV_FLOAT8, "resident", "device"),
        (50.0, DEV_FLOAT8, "streamed", "device"),
        (25.0, DEV_FLOAT8, None, None),
        (145.0, DEV_FP8, "resident", "device"),
        (115.0, DEV_FP8, "streamed", "device"),
        (85.0, DEV_FP8, "streamed", "file"),
        (24.0, KLEIN_4B, "streamed", "file"),
        (20.0, KLEIN_4B, "resident", "file"),
    ],
)
def test_the_placement_that_fits_and_copies_least_is_chosen(free_gb, sizes, text_encoder, base_weights):
    placement = choose_placement(sizes, free=int(free_gb * GB))

    assert (placement and placement.text_encoder, placement and placement.base_weights) == (text_encoder, base_weights)
    assert placement is None or placement.gigabytes <= free_gb


def test_spare_memory_holds_backups_of_base_weights_but_leaves_room_for_a_large_image():
    placement = choose_placement(DEV_FP8, free=85 * GB)

    assert placement.device_backup_bytes == pytest.approx((85 - placement.gigabytes - 8) * GB, rel=1e-6)
    assert choose_placement(DEV_FP8, free=42 * GB).device_backup_bytes == 0


def test_a_place_that_the_settings_name_is_kept_and_the_other_is_chosen_to_fit():
    placement = choose_placement(
        DEV, free=140 * GB, base_weights="device"
    )  # though it leaves no room for a large image

    assert (placement.text_encoder, placement.base_weights) == ("streamed", "device")
    assert choose_placement(DEV, free=140 * GB).base_weights == "file"
    assert choose_placement(DEV, free=85 * GB, text_encoder="resident") is None
    assert choose_placement(DEV, free=150 * GB, base_weights="file").device_backup_bytes == 0


def test_on_a_cpu_the_text_encoder_is_resident_and_base_weights_come_from_the_file():
    placement = choose_placement(DEV, free=None)

    assert (placement.text_encoder, placement.base_weights) == ("resident", "file")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def settings(checkpoint, **values):
    return ModelSettings(
        path=str(checkpoint),
        **{"text_encoder": str(checkpoint / "text_encoder"), "precision": "fp32", **values},
    )


@pytest.fixture
def device_with(monkeypatch):
    """Make the CPU look like a device with this much free memory."""

    def pretend(free):
        monkeypatch.setattr(module, "free_memory_bytes", lambda device, *, limit_gb: free)

    return pretend


def test_a_device_that_is_too_small_is_refused_before_loading_with_what_would_fit(checkpoint, device_with):
    device_with(int(4.015 * GB))

    with pytest.raises(CheckpointError) as refused:
        load_components(settings(checkpoint), device=CPU, hf_token=None)

    assert str(refused.value) == (
        "flux2 in fp32 needs 4.0 GB of device memory; 4.0 GB are free on cpu; "
        "FLUX2_MODEL_PRECISION=qfloat8 needs 4.0 GB"
    )


def test_a_device_that_fits_nothing_is_refused_without_a_false_hint(checkpoint, device_with):
    device_with(1 * GB)

    with pytest.raises(CheckpointError, match=r"needs 4\.0 GB.* 1\.0 GB are free on cpu; choose a smaller model$"):
        load_components(settings(checkpoint, precision="qfloat8"), device=CPU, hf_token=None)


def test_a_place_in_the_settings_that_does_not_fit_is_named_in_the_message(checkpoint, device_with):
    device_with(int(4.042 * GB))

    with pytest.raises(CheckpointError, match=r"4\.0 GB are enough without .*ENCODER_PLACE and .*CLEAN_WEIGHTS$"):
        load_components(settings(checkpoint, clean_weights="device"), device=CPU, hf_token=None)


# The files store bf16 weights; other precisions need copies on the host.
@pytest.mark.parametrize(
    ("precision", "source"), [("bf16", CheckpointFiles), ("fp32", HostCopies), ("qfloat8", HostCopies)]
)
def test_a_streamed_text_encoder_gives_the_same_picture(precision, source, checkpoint, monkeypatch):
    made = []
    for kind in (CheckpointFiles, HostCopies):
        init = kind.__init__
        monkeypatch.setattr(kind, "__init__", partialmethod(noting, init, made))
    spec = ItemSpec(
        model="flux2", prompt="a blue star", neg="", width=64, height=64, requested_width=64, requested_height=64,
        seed=5, num_inference_steps=2, guidance_scale=4.0, adapters=(), output_format="png",
    )  # fmt: skip
    pictures = []

    for where in ("resident", "streamed"):
        asked = settings(checkpoint, precision=precision, text_encoder_place=where)
        components = load_components(asked, device=CPU, hf_token=None)
        assert components.placement.text_encoder == where
        rendered = Renderer(components, prompt_cache=1).render(spec, [], on_progress=lambda _: None)
        pictures.append(rendered.image.tobytes())

    assert pictures[0] == pictures[1]
    assert made == [source]


def noting(self, init, made, *args, **kwargs):
    made.append(type(self))
    init(self, *args, **kwargs)


def test_a_text_encoder_whose_file_was_overwritten_encodes_no_prompt(checkpoint, tmp_path, write_over):
    folder = shutil.copytree(checkpoint / "text_encoder", tmp_path / "text_encoder")
    asked = settings(checkpoint, precision="bf16", text_encoder_place="streamed", text_encoder=str(folder))
    components = load_components(asked, device=CPU, hf_token=None)
    encoder = PromptEncoder(components.text_encoder, components.tokenizer, device=CPU, cache_size=0)
    first = encoder.encode("a blue star").embeds
    assert torch.equal(encoder.encode("a blue star").embeds, first)

    write_over(folder / "model.safetensors")

    with pytest.raises(WeightsLost, match="files have changed since they were first read"):
        [encoder.encode(prompt) for prompt in ("a red star", "a green star")]
