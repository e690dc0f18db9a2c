"""`flux2 verify` passes the goldens and fails damaged ones; the expected measures are worked by hand."""

import json
import math
import os
import shutil
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from shared.errors import AdapterRefused, CheckpointError, GoldensError
from worker.commands import app
from worker.rendering.toolkit_checkout import load_toolkit
from worker.verify.golden_models import GoldenModels, bfl_weights
from worker.verify.goldens import Goldens
from worker.verify.measures import equal, measure, outcome, same_bits

CPU = torch.device("cpu")


def verify(folder, *options):
    return CliRunner().invoke(app, ["verify", str(folder), *options])


@pytest.fixture(scope="module")
def report(goldens):
    """The JSON report of a run over the whole folder."""
    return json.loads(verify(goldens, "--json").stdout)


@pytest.fixture
def damaged(goldens, tmp_path):
    """Makes a copy of the goldens with some of the manifest's cases and one changed tensor."""
    folder = tmp_path / "goldens"
    shutil.copytree(goldens.resolve(), folder, copy_function=os.symlink)

    def make(file=None, change=None, **wanted):
        manifest = json.loads((goldens / "manifest.json").read_text())
        manifest["cases"] = [
            case for case in manifest["cases"] if all(case.get(key) == value for key, value in wanted.items())
        ]
        replace(folder / "manifest.json", json.dumps(manifest).encode())
        if file:
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
            change(tensors)
            (folder / file).unlink()
            save_file(tensors, folder / file)
        return folder

    return make


def replace(file, content):
    file.unlink()
    file.write_bytes(content)


def test_every_golden_passes(report):
    failed = [outcome for outcome in report["outcomes"] if not outcome["passed"]]

    assert failed == []
    assert report["failed"] == 0
    assert report["passed"] == len(report["outcomes"])


def test_every_case_of_the_manifest_is_reported(report, cases):
    seen = {(outcome["type"], outcome["name"]) for outcome in report["outcomes"]}

    for case in cases():
        name = case.get("name") or os.path.basename(case["file"]).removesuffix(".safetensors")
        assert (case["type"], name) in seen


def test_results_that_depend_on_no_kernel_are_exact(report):
    exact = {outcome["type"] for outcome in report["outcomes"] if outcome["type"] in ("schedule", "noise")}

    assert exact == {"schedule", "noise"}
    assert all(outcome["exact"] for outcome in report["outcomes"] if outcome["type"] in exact)


def test_the_last_line_counts_the_cases_and_the_exit_code_is_0(goldens):
    done = verify(goldens, "--only", "noise", "--dtype", "bf16")

    assert done.exit_code == 0
    assert done.stdout.splitlines()[-2:] == ["4 of 4 exact", "4 passed, 0 failed"]
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("noise")] == ["exact"] * 4


def add_to(name, amount):
    def change(tensors):
        tensors[name].view(-1)[0] += amount

    return change


def drop(name):
    return lambda tensors: tensors.pop(name)


DAMAGES = {
    "a prediction": ("forward/dev_fp32.safetensors", add_to("pred", 0.01), "forward", "dev_fp32", "pred max_abs"),
    "a timestep": (
        "sampling/dev_s64_1st_fp32.safetensors",
        add_to("timesteps_model", 1e-6),
        "sampling",
        "dev_s64_1st_fp32",
        "timesteps_model of 1, by 9.5e-07 at most: elements differ 1 > 0",
    ),
    "a step": (
        "sampling/dev_s64_1st_fp32.safetensors",
        add_to("pred_000", 0.01),
        "sampling",
        "dev_s64_1st_fp32",
        "pred_000 max_abs 0.01 > 0.0005",
    ),
    "the time of a reference": (
        "reference/dev_ref1_crop_fp32.safetensors",
        add_to("ref_ids", 1),
        "reference",
        "dev_ref1_crop_fp32",
        "ref_ids of 120, by 1 at most: elements differ 1 > 0",
    ),
    "a token of a reference": (
        "reference/dev_ref1_crop_fp32.safetensors",
        add_to("ref_tokens", 10),
        "reference",
        "dev_ref1_crop_fp32",
        "ref_tokens rel_l2",
    ),
    "a merged weight": (
        "adapter_expected/lora_subset_bf16.safetensors",
        add_to("merged_fp32_m0.5/double_blocks.0.img_attn.qkv.weight", 1e-6),
        "adapter",
        "lora_subset_bf16",
        "merged_fp32_m0.5/double_blocks.0.img_attn.qkv.weight of 768, by",
    ),
    "a token": (
        "text/mistral_left.safetensors",
        add_to("input_ids_3", 1),
        "text",
        "mistral_left",
        "input_ids_3 of 512, by 1 at most: elements differ 1 > 0",
    ),
    "a tensor that is gone": (
        "forward/dev_fp32.safetensors",
        drop("pred"),
        "forward",
        "dev_fp32",
        "KeyError: 'pred'",
    ),
    "a dtype": (
        "forward/dev_fp32.safetensors",
        lambda tensors: tensors.update(pred=tensors["pred"].double()),
        "forward",
        "dev_fp32",
        "pred is float32 [2, 24, 128], not float64 [2, 24, 128]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_golden_fails_by_name(damage, damaged):
    file, change, case_type, name, words = DAMAGES[damage]
    folder = damaged(file, change, type=case_type)

    done = verify(folder, "--only", case_type, "--dtype", "fp32")

    failed = [line for line in done.stdout.splitlines() if "FAIL" in line]
    assert done.exit_code == 1
    assert [line.split()[:3] for line in failed] == [[case_type, name, "fp32"]]
    assert words in failed[0]
    assert done.stdout.splitlines()[-1].endswith(" passed, 1 failed")


def test_a_file_that_is_not_safetensors_fails_its_case_and_the_other_cases_run(damaged):
    folder = damaged(type="forward")
    replace(folder / "forward/dev_bf16.safetensors", b"nothing")

    done = verify(folder, "--only", "forward", "--json")

    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (report["passed"], report["failed"]) == (3, 1)
    assert [outcome["error"] for outcome in report["outcomes"] if not outcome["passed"]] == [None]


def test_a_nan_in_a_golden_fails_and_the_report_stays_valid_json(damaged):
    folder = damaged("forward/dev_fp32.safetensors", add_to("pred", math.nan), name=None, model="dev", dtype="fp32")

    done = verify(folder, "--only", "forward", "--json")

    (failed,) = json.loads(done.stdout, parse_constant=pytest.fail)["outcomes"]
    assert done.exit_code == 1
    assert failed["error"] is None
    assert not failed["passed"]


def test_a_refused_adapter_fails_if_the_goldens_hold_a_result_for_it(damaged):
    folder = damaged(type="adapter", name="lora_subset_bf16")
    replace(
        folder / "adapters/lora_subset_bf16.safetensors",
        (folder / "adapters_hand/wholly_unmatched.safetensors").read_bytes(),
    )

    done = verify(folder, "--only", "adapter", "--dtype", "fp32")

    assert done.exit_code == 1
    assert "FAIL   AdapterRefused: " in done.stdout


def test_an_accepted_adapter_fails_if_it_must_be_refused(damaged):
    folder = damaged(type="adapter_hand", name="missing_B")
    replace(
        folder / "adapters_hand/missing_B.safetensors",
        (folder / "adapters/lora_subset_bf16.safetensors").read_bytes(),
    )

    done = verify(folder, "--only", "adapter_hand")

    assert done.exit_code == 1
    assert "the adapter was accepted but must be refused" in done.stdout
    assert "weights afterwards" in done.stdout


def test_a_converted_adapter_whose_strength_is_lost_fails_by_its_latents_and_its_weights(damaged):
    name = "wild_metadata_lora_adapter"
    # The test's copy of the file has no header, where its alpha stands.
    folder = damaged(f"adapters_hand/{name}.safetensors", lambda tensors: None)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"] = [case for case in manifest["cases"] if case.get("name") in (name, "lora_subset_bf16")]
    replace(folder / "manifest.json", json.dumps(manifest).encode())

    done = verify(folder, "--only", "adapter_hand", "--json")

    (failed,) = json.loads(done.stdout)["outcomes"]
    assert done.exit_code == 1
    assert "latents_fp32_m1.0 max_abs" in failed["detail"]
    assert "merged_fp32_m1.0/double_blocks" in failed["detail"]


def test_a_converted_adapter_whose_original_is_missing_fails(damaged):
    folder = damaged(name="wild_kohya_lora_unet")

    done = verify(folder, "--only", "adapter_hand", "--json")

    (failed,) = json.loads(done.stdout)["outcomes"]
    assert done.exit_code == 1
    assert "manifest.json has no case of type adapter named 'lora_r4_bf16'" in failed["detail"]


def test_a_refusal_that_names_no_part_of_the_file_fails(damaged, monkeypatch):
    folder = damaged(name="missing_B")
    file = folder / "adapters_hand/missing_B.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file(tensors, file, {"format": "pt"})

    def refuse(*_, **__):
        raise AdapterRefused("this format is unknown")

    monkeypatch.setattr("worker.verify.checks.AdapterSwapper.activate", refuse)
    done = verify(folder, "--only", "adapter_hand", "--json")

    (failed,) = json.loads(done.stdout)["outcomes"]
    assert done.exit_code == 1
    assert "the refusal names no key of the file (this format is unknown)" in failed["detail"]


def test_a_tolerance_with_an_unknown_metric_fails(damaged):
    folder = damaged(type="forward", model="dev", dtype="fp32")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0]["tolerance"] = {"cosine": 0.1}
    replace(folder / "manifest.json", json.dumps(manifest).encode())

    done = verify(folder, "--only", "forward")

    assert done.exit_code == 1
    assert "unknown metrics ['cosine'] in the tolerance" in done.stdout


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    assert isinstance(verify(tmp_path).exception, GoldensError)


def test_a_selection_without_a_case_is_an_error(damaged):
    folder = damaged(type="forward")

    done = verify(folder, "--only", "e2e")

    assert isinstance(done.exception, GoldensError)


def test_a_sidecar_may_state_another_rotary_split_and_base(damaged):
    folder = damaged(type="forward")
    sidecar = folder / "weights/flux2_dev_tiny.json"
    stated = json.loads(sidecar.read_text()) | {"axes_dim": [2, 6, 6, 2], "theta": 500}
    replace(sidecar, json.dumps(stated).encode())

    transformer = GoldenModels(Goldens(folder), CPU).components("dev", "fp32").transformer

    assert tuple(transformer.config.axes_dims_rope) == (2, 6, 6, 2)
    assert transformer.config.rope_theta == 500


def test_weights_are_joined_again_to_those_in_the_file(goldens):
    stored = load_file(goldens / "weights/flux2_dev_tiny.safetensors")

    weights = bfl_weights(GoldenModels(Goldens(goldens), CPU).components("dev", "bf16").transformer)

    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in stored.items())


def test_each_metric_matches_a_hand_worked_example():
    got, golden = torch.tensor([3.0, 0.0, 1.5]), torch.tensor([3.0, 4.0, 0.0])

    # differences 0, 4 and 1.5; the golden's norm is 5, the difference's sqrt(16 + 2.25) = 4.272002
    found = measure("x", got, golden, {"max_abs": 4.0, "rel_l2": 0.5, "mean_diff": 2.0})

    assert [round(one.error, 6) for one in found] == [4.0, 0.8544, 1.833333]
    assert [one.passed for one in found] == [True, False, True]


def test_a_step_of_bfloat16_is_one_ulp_on_either_side_of_zero():
    got = torch.tensor([1.0, -1.0, 2**-133, 1.0], dtype=torch.bfloat16)  # 2**-133 is the smallest positive one
    golden = torch.tensor([1.0078125, -1.0078125, -(2**-133), 1.0], dtype=torch.bfloat16)

    (found,) = measure("x", got, golden, {"max_abs_ulp": 1})
    (one,) = measure("x", got[:2], golden[:2], {"max_abs_ulp": 1})

    assert found.error == 2  # over 0 and -0, which are one number
    assert one.error == 1


def test_nan_passes_no_limit():
    nan = torch.tensor([math.nan])

    assert not measure("x", nan, nan, {"max_abs": 1.0})[0].passed
    assert not measure("x", nan, nan, {"rel_l2": 1.0})[0].passed
    assert not equal("x", nan, nan).passed


def test_same_bits_distinguishes_minus_zero_from_zero():
    assert equal("x", torch.tensor([0.0]), torch.tensor([-0.0])).passed
    assert not same_bits("x", {"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}).passed


def test_a_case_without_any_measure_does_not_pass():
    assert not outcome("forward", "x", "fp32", []).passed


def test_the_comparison_with_ai_toolkit_needs_a_checkout(goldens):
    done = verify(goldens, "--against-toolkit")

    assert done.exit_code == 2
    assert "AI_TOOLKIT_PATH" in done.stderr


def test_ai_toolkits_engine_needs_a_checkout(goldens):
    done = verify(goldens, "--engine", "ai-toolkit")

    assert done.exit_code == 2
    assert "--engine ai-toolkit needs a checkout of AI Toolkit: give --toolkit or set AI_TOOLKIT_PATH" in " ".join(
        done.stderr.replace("│", " ").split()
    )


def test_diffusers_own_pipelines_miss_the_goldens(goldens):
    done = verify(goldens, "--engine", "diffusers", "--dtype", "fp32", "--json")

    outcomes = {outcome["name"]: outcome for outcome in json.loads(done.stdout)["outcomes"]}
    assert done.exit_code == 1
    assert {outcome["type"] for outcome in outcomes.values()} == {"forward", "sampling"}
    assert outcomes["dev_fp32"]["passed"]  # one pass is the same arithmetic
    assert outcomes["dev_s64_1st_fp32"]["passed"]  # so is one step, from 1 to 0 in any schedule
    failed = [outcomes[name] for name in ("dev_s64_4st_fp32", "klein_s128x128_20st_cfg4_fp32")]
    assert all(not outcome["passed"] and "latents max_abs" in outcome["detail"] for outcome in failed)


def test_a_path_without_ai_toolkit_is_refused_with_the_path_and_the_missing_file(goldens, tmp_path):
    done = verify(goldens, "--against-toolkit", "--toolkit", str(tmp_path))

    assert isinstance(done.exception, CheckpointError)
    assert str(tmp_path) in str(done.exception)
    assert "flux2/src/model.py" in str(done.exception)


def test_other_prepared_pixels_and_an_accepted_reference_fail_the_reference_cases(damaged):
    folder = damaged(type="reference", name="dev_ref1_crop_fp32")
    manifest = json.loads((folder / "manifest.json").read_text())
    (case,) = manifest["cases"]
    case["references_prepared"][0]["rgb_sha256"] = "0" * 64
    refused = {**case, "name": "refused", "file": None, "expected_error": "raise", "toolkit_error": "ValueError"}
    manifest["cases"].append(refused)
    (folder / "manifest.json").write_text(json.dumps(manifest))

    done = verify(folder, "--only", "reference")

    assert done.exit_code == 1
    assert "reference 0 rgb_sha256 differs 1 > 0" in done.stdout
    assert "the references were accepted but must be refused" in done.stdout


@pytest.fixture
def checkout(tmp_path):
    """Makes a folder with the files of AI Toolkit that are imported or read; a keyword replaces one of them."""

    def make(**changed):
        flux2 = "extensions_built_in/diffusion_models/flux2"
        sources = {
            "model": "class Flux2: pass\nclass Flux2Params: pass\n",
            "autoencoder": "class AutoEncoder: pass\nclass AutoEncoderParams: pass\n"
            "class AutoEncoderSmallDecoderParams: pass\n",
            "sampling": "import torchvision\nfrom .model import Flux2\ndef get_schedule(): pass\n"
            "def encode_image_refs(images): return torchvision.transforms.ToTensor()(images)\n",
            "pipeline": "from .sampling import get_schedule\nclass Flux2Pipeline: pass\n",
            "custom_flowmatch_sampler": "from toolkit.weights import weights\n"
            "class CustomFlowMatchEulerDiscreteScheduler: pass\n",
            "weights": "weights = [1.0]\n",
            "flux2_model": "import no_such_package\nscheduler_config = {'shift': 3.0}\n",
            "version": 'VERSION = "1.2.3"\n',
        }
        folders = {"custom_flowmatch_sampler": "toolkit/samplers", "weights": "toolkit", "flux2_model": flux2}
        for name, source in (sources | changed).items():
            folder = tmp_path / ("" if name == "version" else folders.get(name, f"{flux2}/src"))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.py").write_text(source)
        for package in ("toolkit", f"{flux2}/src"):
            (tmp_path / package / "__init__.py").write_text("raise AssertionError('the package itself was imported')\n")
        return tmp_path

    return make


def test_only_the_needed_files_are_imported_and_no_stub_module_remains(checkout, monkeypatch):
    before = "torchvision" in sys.modules
    monkeypatch.setitem(sys.modules, "toolkit", somebodys := ModuleType("toolkit"))

    toolkit = load_toolkit(checkout())

    assert toolkit.transformer.__name__ == "Flux2"
    assert toolkit.pipeline.__name__ == "Flux2Pipeline"
    assert toolkit.scheduler.__name__ == "CustomFlowMatchEulerDiscreteScheduler"
    assert (toolkit.version, toolkit.scheduler_config) == ("1.2.3", {"shift": 3.0})
    assert ("torchvision" in sys.modules) == before
    assert sys.modules["toolkit"] is somebodys
    assert not [name for name in sys.modules if name.startswith("toolkit.")]


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="the checkout then uses torchvision itself")
def test_without_torchvision_a_checkout_converts_reference_images_as_torchvision_does(checkout):
    toolkit = load_toolkit(checkout())

    found = toolkit.encode_references(Image.new("RGB", (3, 2), (255, 0, 51)))

    # Channels first, then rows, then columns; 51 / 255 is 0.2.
    assert found.shape == (3, 2, 3)
    assert found.dtype == torch.float32
    assert found[:, 1, 2].tolist() == pytest.approx([1.0, 0.0, 0.2])


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("pipeline", "class Other: pass\n", "has no Flux2Pipeline"),
        ("model", "import no_such_package\n", "model.py of AI Toolkit cannot be imported: install no_such_package"),
        ("autoencoder", "class AutoEncoder(:\n", "autoencoder.py:1 is not Python"),
        ("flux2_model", "scheduler_config = read()\n", "flux2_model.py: scheduler_config cannot be read"),
        ("version", "", "version.py has no VERSION"),
    ],
)
def test_an_incomplete_checkout_is_refused_with_the_name_of_the_missing_part(file, source, words, checkout):
    root = checkout(**{file: source})

    with pytest.raises(CheckpointError, match=words):
        load_toolkit(root)
