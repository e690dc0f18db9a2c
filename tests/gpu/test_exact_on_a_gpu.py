"""On a CUDA device: the bits of a restore, of a repeat, and of ours compared with AI Toolkit's own classes."""

import json
import os
import shutil

import pytest
import torch
from typer.testing import CliRunner

from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.commands import app
from worker.model.load import load_components
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

ROOT = os.environ.get("AI_TOOLKIT_PATH")  # read here: the tests' environment is emptied of it

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KINDS = ["lora_alllinear_bf16", "lokr_full_bf16", "dora_bf16", "fullrank_bf16", "lora_plus_diff_bf16"]


@pytest.fixture(scope="module", params=["fp32", "bf16", "qfloat8"])
def renderer(request, goldens, tmp_path_factory):
    """The goldens' model on the device, in each precision."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(goldens / "weights/flux2_dev_tiny.safetensors", folder / "flux2-dev.safetensors")
    shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
    for part in ("mistral_tiny", "mistral_processor_pad_left"):
        shutil.copytree(goldens / "text" / part, folder / "text_encoder", dirs_exist_ok=True)
    settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision=request.param)
    return Renderer(load_components(settings, device=torch.device("cuda:0"), hf_token=None), prompt_cache=4)


def render(renderer, path=None, *, mode=None, **changes):
    adapters = () if path is None else (adapter_ref(path, 0.7),)
    spec = ItemSpec(
        model="flux2",
        prompt="a red fox jumps over a river",
        neg="",
        width=128,
        height=96,
        requested_width=128,
        requested_height=96,
        seed=changes.get("seed", 7),
        num_inference_steps=4,
        guidance_scale=4.0,
        adapters=adapters,
        output_format="png",
        adapter_mode=mode,
    )
    return renderer.render(spec, [path] if path else [], on_progress=lambda _: None).image.tobytes()


def test_every_kind_changes_the_picture_and_is_removed_to_the_bit(renderer, goldens):
    base = render(renderer)
    modes = ["merged", "live"] if renderer.swapper.components.precision.can_merge else ["live"]

    for name in KINDS:
        for mode in modes:
            path = goldens / f"adapters/{name}.safetensors"
            first = render(renderer, path, mode=mode)
            render(renderer, seed=8)
            assert render(renderer, path, mode=mode) == first, (name, mode)
            assert first != base, (name, mode)

    assert render(renderer) == base
    assert renderer.swapper.count_corrupted() == 0
    assert renderer.swapper.corrupted == 0


@pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout of AI Toolkit")
def test_ai_toolkits_classes_and_ours_give_the_same_bits_on_the_device(goldens):
    options = ["--against-toolkit", "--toolkit", ROOT, "--device", "cuda", "--json"]

    outcomes = json.loads(CliRunner().invoke(app, ["verify", str(goldens), *options]).stdout)["outcomes"]

    assert len(outcomes) == 66
    assert [outcome for outcome in outcomes if not outcome["exact"]] == []
