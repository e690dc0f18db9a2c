"""The tiny checkpoint: the same bytes everywhere, complete, and good enough to see what changed."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from shared.adapters.header import read_header
from shared.adapters.layout import check_fits, describe
from shared.settings import ModelSettings
from worker.pipeline.load import load_components
from worker.pipeline.tiny import write_matching_adapter, write_tiny_checkpoint
from worker.render import Renderer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(folder)
    write_matching_adapter(folder, folder / "adapters/demo.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny_components(tiny):
    settings = ModelSettings(path=str(tiny), text_encoder=str(tiny / "text_encoder"), precision="fp32")
    return load_components(settings, device=torch.device("cpu"), hf_token=None)


@pytest.fixture
def render(tiny, tiny_components, item, adapter_ref):
    renderer, path = Renderer(tiny_components, prompt_cache=4), tiny / "adapters/demo.safetensors"

    def run(*multipliers, **changes):
        refs = tuple(adapter_ref(path, multiplier) for multiplier in multipliers)
        spec = item(width=128, height=128, num_inference_steps=4, adapters=refs).model_copy(update=changes)
        image = renderer.render(spec, [path] * len(refs), on_progress=lambda _: None).image
        return np.asarray(image).astype(float)

    return run


def digests(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_another_process_writes_the_same_bytes(tiny, tmp_path):
    code = (
        "import sys; from pathlib import Path; from worker.pipeline import tiny; folder = Path(sys.argv[1]);"
        "tiny.write_tiny_checkpoint(folder);"
        "tiny.write_matching_adapter(folder, folder / 'adapters/demo.safetensors')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, timeout=100)

    assert digests(tmp_path) == digests(tiny)


def test_the_files_are_those_of_the_real_model(tiny):
    assert {file.name for file in tiny.iterdir()} == {
        "flux2-dev.safetensors",
        "ae.safetensors",
        "text_encoder",
        "adapters",
    }
    with safe_open(tiny / "ae.safetensors", framework="pt") as file:
        assert file.get_slice("decoder.mid.attn_1.q.weight").get_shape() == [32, 32, 1, 1]
        assert file.get_slice("bn.running_var").get_dtype() == "BF16"
    with safe_open(tiny / "flux2-dev.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        assert file.get_slice("double_blocks.1.img_attn.qkv.weight").get_shape() == [192, 64]


def test_the_adapter_is_one_that_ai_toolkit_could_have_written(tiny, tiny_components):
    path = tiny / "adapters/demo.safetensors"

    layout = describe(read_header(path, max_bytes=10**9))

    check_fits(layout, tiny_components.layers, model="flux2")
    assert layout.metadata["ss_base_model_version"] == "flux2"
    assert len(layout.updates) == 20
    assert {update.rank for update in layout.updates} == {8}


def test_the_image_is_not_one_flat_colour(render):
    image = render()

    assert image.std() > 20
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000


def test_prompt_seed_adapter_and_multiplier_show(render):
    base = render()

    for changed, least in (
        (render(prompt="an oil painting of a harbour"), 0.5),
        (render(seed=7), 5),
        (render(1.0), 5),
        (render(0.5), 2),
        (render(-1.0), 5),
        (render(guidance_scale=1.0), 0.5),
    ):
        assert np.abs(changed - base).mean() > least
    assert np.abs(render(1.0) - render(0.5)).mean() > 2
