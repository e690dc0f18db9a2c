"""On a CUDA device: the bits of a restore, of a repeat, and of ours compared with AI Toolkit's own classes."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
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

KINDS = [
    "adapters/lora_alllinear_bf16",
    "adapters/lokr_full_bf16",
    "adapters/dora_bf16",
    "adapters/fullrank_bf16",
    "adapters/lora_plus_diff_bf16",
    "adapters_hand/wild_loha",
    "adapters_hand/wild_dora_magnitude_vector",
]


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


def render(renderer, path=None, *, mode=None, previews=None, **changes):
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
    rendered = renderer.render(spec, [path] if path else [], on_progress=lambda _: None, previews=previews)
    return rendered.image.tobytes()


def test_previews_change_no_bit_of_an_image_and_arrive(renderer):
    taken = []
    sink = SimpleNamespace(
        is_due=lambda step, steps: step in (1, 2), offer=lambda preview, *, step, steps: taken.append(preview)
    )
    expected = render(renderer)

    assert render(renderer, previews=sink) == expected
    torch.cuda.synchronize()
    assert [(preview.is_ready, preview.image().size) for preview in taken] == [(True, (16, 12))] * 2


def as_onetrainer(source, path, layers):
    """Write the trainer's DoRA with OneTrainer's names, and DoRAs that scale columns, alone and with a LoKr."""
    tensors = load_file(source)
    rows = {
        key.replace(".magnitude", ".dora_scale"): tensor.view(-1, 1) if key.endswith(".magnitude") else tensor
        for key, tensor in tensors.items()
    }
    columns, lokr = {}, {}
    for key, tensor in tensors.items():
        module = key.removesuffix(".magnitude")
        if module == key:
            columns[key] = tensor
            continue
        out, features = layers[module.removeprefix("diffusion_model.")]
        lengths = torch.linspace(0.5, 2.0, features, dtype=tensor.dtype).view(1, -1)
        columns[f"{module}.dora_scale"] = lengths
        lokr[f"{module}.lokr_w1"] = torch.full((2, 2), 0.1, dtype=tensor.dtype)
        lokr[f"{module}.lokr_w2"] = torch.full((out // 2, features // 2), 0.1, dtype=tensor.dtype)
        lokr[f"{module}.dora_scale"] = lengths.clone()
    files = {"rows": rows, "columns": columns, "lokr": lokr}
    for name, content in files.items():
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path / f"{name}.safetensors")
    return {name: path / f"{name}.safetensors" for name in files}


def test_doras_of_onetrainer_are_merged_as_the_trainers_and_removed_to_the_bit(renderer, goldens, tmp_path):
    base, trainers = render(renderer), goldens / "adapters/dora_bf16.safetensors"
    components = renderer.swapper.components
    files = as_onetrainer(trainers, tmp_path, components.layers)

    for mode in ["merged", "live"] if components.precision.can_merge else ["live"]:
        expected = render(renderer, trainers, mode=mode)
        pictures = {name: render(renderer, path, mode=mode) for name, path in files.items()}

        assert pictures["rows"] == expected
        assert len({base, *pictures.values()}) == 4
        assert {name: render(renderer, path, mode=mode) for name, path in files.items()} == pictures

    assert render(renderer) == base
    assert renderer.swapper.count_corrupted() == 0


def test_every_kind_changes_the_picture_and_is_removed_to_the_bit(renderer, goldens):
    base = render(renderer)
    modes = ["merged", "live"] if renderer.swapper.components.precision.can_merge else ["live"]

    for name in KINDS:
        for mode in modes:
            path = goldens / f"{name}.safetensors"
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
