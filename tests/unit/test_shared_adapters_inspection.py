"""The description of an adapter file: its kind, its layers, its base, and why it is refused."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from shared.adapters.base_files import narrow_model, read_linear_layers
from shared.adapters.inspection import BlockLayers, inspect_adapter
from shared.adapters.inspection_base import find_base
from shared.adapters.inspection_text import describe_rows
from shared.adapters.validate import validate_adapters
from shared.catalog import MODELS
from shared.commands import inspect
from shared.errors import AdapterNotFound, AdapterRefused
from shared.request import LoraItem
from shared.settings import AdaptersSettings

MAX = 2**30


@pytest.fixture
def base(goldens):
    return read_linear_layers([goldens / "weights" / "flux2_dev_tiny.safetensors"])


def test_the_trainers_file_is_described_and_compared_with_its_base(goldens, base):
    found = inspect_adapter(
        goldens / "adapters" / "lora_r4_bf16.safetensors", max_bytes=MAX, layers=base, model="flux2"
    )

    assert (found.refused, found.kind, found.ranks, found.dtypes) == (None, "lora", (4,), {"BF16": 40})
    assert (found.layers, found.matched, found.unmatched) == (20, 20, ())
    assert found.base_model_version == "flux2"
    assert isinstance(found.step, int)


def test_without_a_base_the_matches_are_unknown(goldens):
    found = inspect_adapter(goldens / "adapters" / "lokr_full_bf16.safetensors", max_bytes=MAX)

    assert (found.kind, found.matched, found.refused) == ("lokr", None, None)


def test_a_file_that_partly_matches_lists_the_other_layers(goldens, base):
    fewer = {name: shape for name, shape in base.items() if not name.startswith("single_blocks.1")}

    found = inspect_adapter(
        goldens / "adapters" / "lora_r4_bf16.safetensors", max_bytes=MAX, layers=fewer, model="flux2"
    )

    assert (found.layers, found.matched) == (20, 18)
    assert found.unmatched == ("single_blocks.1.linear1", "single_blocks.1.linear2")
    assert "does not have" in found.refused


def test_a_file_that_names_another_base_is_refused(tmp_path):
    file = tmp_path / "klein.safetensors"
    tensors = {
        f"diffusion_model.double_blocks.0.img_attn.proj.lora_{half}.weight": torch.zeros(shape)
        for half, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    metadata = {"ss_base_model_version": "flux2_klein_4b", "training_info": "[" * 200_000}
    save_file(tensors, file, metadata=metadata)

    assert inspect_adapter(file, max_bytes=MAX).refused is None
    found = inspect_adapter(file, max_bytes=MAX, model="flux2")
    assert "flux2_klein_4b" in found.refused
    assert found.step is None  # what nests so deep is no training info


def test_a_file_that_is_not_understood_still_has_a_hash_and_a_reason(goldens):
    found = inspect_adapter(goldens / "adapters_hand" / "wholly_unmatched.safetensors", max_bytes=MAX)

    assert len(found.sha256) == 64
    assert found.refused


LAYER = "double_blocks.0.img_attn.proj."


def pair(module, down="lora_A.weight", up="lora_B.weight"):
    return {f"{module}{down}": torch.zeros(4, 64), f"{module}{up}": torch.ones(64, 4)}


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32]
)
def test_the_scale_is_read_from_the_alpha_tensors(dtype, written):
    module = f"diffusion_model.{LAYER}"
    file = written(pair(module) | {f"{module}alpha": torch.tensor(6, dtype=dtype)})

    found = inspect_adapter(file, max_bytes=MAX)

    assert (found.scale_range, found.scale_sources) == ((1.5, 1.5), ("tensor",))


def test_different_scales_are_a_range_and_no_alpha_is_said(written, goldens):
    mixed = inspect_adapter(goldens / "adapters_hand/AB_alpha_mixedrank.safetensors", max_bytes=MAX)
    without = inspect_adapter(goldens / "adapters/lora_r4_bf16.safetensors", max_bytes=MAX)
    header = inspect_adapter(written(pair(f"transformer.{DIFFUSERS}"), {"lora_alpha": "2"}), max_bytes=MAX)

    assert mixed.scale_range == (0.25, 2.0)
    assert dict(describe_rows(asdict(mixed)))["scale"] == "0.25 to 2 (alpha tensors)"
    assert dict(describe_rows(asdict(without)))["scale"] == "1 (no alpha stored)"
    assert dict(describe_rows(asdict(header)))["scale"] == "0.5 (lora_alpha in the header)"


DIFFUSERS = "transformer_blocks.0.attn.to_out.0."


def loha(module):
    factors = {f"{module}hada_w{number}_a": torch.ones(64, 4) for number in (1, 2)}
    return factors | {f"{module}hada_w{number}_b": torch.ones(4, 64) for number in (1, 2)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "trainer"),
    [
        (
            pair(f"diffusion_model.{LAYER}"),
            {"software": '{"name": "ai-toolkit", "version": "0.7.1"}'},
            "AI Toolkit 0.7.1",
        ),
        (pair(f"diffusion_model.{LAYER}"), {"software": "[" * 100_000}, "AI Toolkit"),
        (pair(f"diffusion_model.{LAYER}"), {"ss_network_module": "networks.lora_flux_2"}, "musubi-tuner"),
        (pair(f"diffusion_model.{LAYER}"), {"ot_branch": "master"}, "OneTrainer"),
        (
            pair("lora_unet_double_blocks_0_img_attn_proj.", "lora_down.weight", "lora_up.weight"),
            {},
            "musubi-tuner or kohya's scripts",
        ),
        (pair("diffusion_model.double_blocks.0.img_attn_proj."), {}, "musubi-tuner, converted"),
        (pair(f"base_model.model.{LAYER}"), {}, "PEFT, as fal uses it"),
        (pair(f"transformer.{DIFFUSERS}"), {}, "diffusers or SimpleTuner"),
        (pair(f"transformer.{DIFFUSERS}", "lora_down.weight", "lora_up.weight"), {}, "OneTrainer"),
        (pair(DIFFUSERS, "lora_A.default.weight", "lora_B.default.weight"), {}, "DiffSynth-Studio"),
        (pair(f"model.diffusion_model.{LAYER}"), {}, "ComfyUI"),
        ({"something": torch.zeros(1)}, {}, None),
        # No tool is known to write these combinations.
        (loha(f"diffusion_model.{LAYER}"), {}, None),
        (loha(f"transformer.{DIFFUSERS}"), {}, None),
        (loha("lycoris_transformer_blocks_0_attn_to_out_0."), {}, "SimpleTuner with LyCORIS"),
        (pair(f"diffusion_model.{LAYER}", "lora_down.weight", "lora_up.weight"), {}, None),
        (pair(f"diffusion_model.{LAYER}") | {f"diffusion_model.{LAYER}dora_scale": torch.ones(64, 1)}, {}, None),
    ],
)
def test_the_trainer_is_guessed(tensors, metadata, trainer, written):
    assert inspect_adapter(written(tensors, metadata), max_bytes=MAX).trainer == trainer


def test_layers_are_counted_by_type_of_block(goldens, base):
    fewer = {name: shape for name, shape in base.items() if not name.startswith("single_blocks.1")}
    file = goldens / "adapters/lora_alllinear_bf16.safetensors"

    found = inspect_adapter(file, max_bytes=MAX, layers=fewer, model="flux2")

    assert found.blocks == {"double": BlockLayers(16, 16), "single": BlockLayers(4, 2), "other": BlockLayers(11, 11)}
    assert dict(describe_rows(asdict(found)))["blocks"] == "16 of 16 double, 2 of 4 single, 11 of 11 other"


def test_a_base_is_a_model_or_a_file(goldens, written):
    klein = find_base("flux2_klein_9b_distilled")
    tiny = find_base(str(goldens / "weights/flux2_dev_tiny.safetensors"))
    other = written({"img_in.weight": torch.zeros(2, 2)})

    assert klein.layers["single_blocks.23.linear1"] == (36_864, 4096)
    assert (tiny.model, tiny.layers["img_in"]) == ("flux2", (64, 128))
    assert find_base(str(other), model="flux2_klein_4b").model == "flux2_klein_4b"
    with pytest.raises(AdapterNotFound, match="no such file or folder, nor one of the models flux2, flux2_klein_4b"):
        find_base("flux3")


QKV_NAMES = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
DIFFUSERS_BASE = {f"{name}.weight": torch.zeros(64, 64) for name in (*QKV_NAMES, "transformer_blocks.0.attn.to_out.0")}
NORM_OUT = {"norm_out.linear.weight": torch.zeros(128, 64), "transformer_blocks.0.attn.norm_q.weight": torch.zeros(8)}


def write_diffusers(folder, *, distilled=None):
    """Write a transformer in two shards, as diffusers does, and return the model's folder."""
    weights = folder / "transformer"
    weights.mkdir(parents=True)
    shards = {
        "diffusion_pytorch_model-00001.safetensors": DIFFUSERS_BASE,
        "diffusion_pytorch_model-00002.safetensors": NORM_OUT,
    }
    for name, tensors in shards.items():
        save_file(tensors, weights / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (weights / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if distilled is not None:
        (folder / "model_index.json").write_text(json.dumps({"is_distilled": distilled}))
    return folder


EXPECTED_LAYERS = {
    "double_blocks.0.img_attn.qkv": (192, 64),
    "double_blocks.0.img_attn.proj": (64, 64),
    "final_layer.adaLN_modulation.1": (128, 64),
}


def test_a_base_is_a_folder_of_diffusers_or_of_black_forest_labs_or_of_the_hubs_cache(tmp_path):
    model = write_diffusers(tmp_path / "model")
    cached = tmp_path / "models--black-forest-labs--FLUX.2-dev"
    snapshot = write_diffusers(cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    single = tmp_path / "single"
    single.mkdir()
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(192, 64)}, single / "flux2-dev.safetensors")

    for place in (model, model / "transformer", cached, snapshot):
        assert find_base(str(place)).layers == EXPECTED_LAYERS
    assert find_base(str(single)).layers == {"double_blocks.0.img_attn.qkv": (192, 64)}


def test_a_base_that_lacks_files_is_refused_with_what_is_missing(tmp_path):
    model = write_diffusers(tmp_path / "model")
    (model / "transformer/diffusion_pytorch_model-00002.safetensors").unlink()
    empty, cached = tmp_path / "empty", tmp_path / "models--a--b"
    for folder in (empty, cached / "snapshots/one", cached / "snapshots/two"):
        folder.mkdir(parents=True)
    other = tmp_path / "other.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(2, 2)}, other)

    with pytest.raises(AdapterNotFound, match=r"model-00002.safetensors of .* is missing; download the folder again"):
        find_base(str(model))
    with pytest.raises(AdapterNotFound, match="name a model's folder or a transformer's file"):
        find_base(str(empty))
    with pytest.raises(AdapterNotFound, match="which snapshot is meant"):
        find_base(str(cached))
    with pytest.raises(AdapterRefused, match=r"holds no linear layer of FLUX\.2; name the file of a transformer"):
        find_base(str(other))


@pytest.mark.parametrize(
    ("place", "distilled", "model"),
    [
        ("model", True, "flux2_klein_4b_distilled"),
        ("model", False, "flux2_klein_4b"),
        ("model", None, "flux2_klein_4b"),
        ("models--black-forest-labs--FLUX.2-klein-4B/snapshots/abc", None, "flux2_klein_4b_distilled"),
        ("models--black-forest-labs--FLUX.2-klein-base-4B/snapshots/abc", None, "flux2_klein_4b"),
    ],
)
def test_a_distilled_base_is_recognised_by_its_index_or_its_repository(tmp_path, place, distilled, model):
    folder = write_diffusers(tmp_path / place, distilled=distilled)
    shards = sorted((folder / "transformer").glob("*.safetensors"))

    assert narrow_model(MODELS["flux2_klein_4b"], shards).id == model


@pytest.mark.parametrize("model", MODELS)
def test_inspect_says_what_a_submit_says(model, goldens):
    for file in sorted(goldens.glob("adapters*/*.safetensors")):
        base = find_base(model)
        lora, settings = LoraItem(path=file.name), AdaptersSettings(root=file.parent)
        try:
            [valid] = validate_adapters([lora], MODELS[model], layers=base.layers, settings=settings)
            expected = (None, valid.warnings)
        except AdapterRefused as error:
            expected = (str(error), ())

        found = inspect_adapter(file, max_bytes=MAX, layers=base.layers, model=model)
        assert (found.refused, found.warnings) == expected


def test_a_lora_of_the_base_model_is_accepted_by_the_distilled_one_with_the_submits_warning(written):
    layer = "diffusion_model.single_blocks.19.linear2."
    tensors = {f"{layer}lora_A.weight": torch.zeros(4, 4 * 3072), f"{layer}lora_B.weight": torch.ones(3072, 4)}
    base = find_base("flux2_klein_4b_distilled")

    found = inspect_adapter(
        written(tensors, {"ss_base_model_version": "flux_2_klein_4b"}),
        max_bytes=MAX,
        layers=base.layers,
        model=base.model,
    )

    assert found.refused is None
    assert "runs on flux2_klein_4b_distilled" in found.warnings[0]


def flux2_inspect(*arguments):
    command = [sys.executable, "-m", "shared.cli", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_a_table_for_people_and_json_for_scripts(goldens):
    file = goldens / "adapters" / "lora_r4_bf16.safetensors"
    weights = goldens / "weights" / "flux2_dev_tiny.safetensors"

    table = flux2_inspect(file, "--base", weights)
    parsed = json.loads(flux2_inspect(file, "--json").stdout)

    assert table.returncode == 0
    assert "40 BF16" in table.stdout
    assert (parsed["kind"], parsed["ranks"], parsed["matched"]) == ("lora", [4], None)


def test_the_command_fails_on_a_file_that_cannot_be_used(goldens, tmp_path):
    assert (
        flux2_inspect(
            goldens / "adapters_hand" / "missing_B.safetensors",
            "--base",
            goldens / "weights" / "flux2_dev_tiny.safetensors",
        ).returncode
        == 1
    )
    missing = flux2_inspect(tmp_path / "nothing.safetensors")
    assert missing.returncode == 1
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("job", "job is a folder; name a .safetensors file; it holds step_250.safetensors, step_500.safetensors"),
        ("job/step_25.safetensors", "did you mean job/step_250.safetensors or job/step_500.safetensors?"),
        ("inside.safetensors", "did you mean {root}/inside.safetensors, under the adapter root?"),
        ("nothing/like.safetensors", "no such file; the adapter root is {root}"),
    ],
)
def test_a_file_that_is_not_found_is_answered_with_what_may_be_meant(tmp_path, monkeypatch, file, message):
    root = tmp_path / "root"
    for made in ("job/step_250", "job/step_500", "root/inside"):
        path = tmp_path / f"{made}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX2_ADAPTERS_ROOT", str(root))

    with pytest.raises(AdapterNotFound) as missing:
        inspect(file, base=None)

    assert message.format(root=root) in str(missing.value)
