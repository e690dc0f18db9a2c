"""The description of an adapter file: its kind, its layers, its base, and why it is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.adapters.inspection import inspect_adapter, read_linear_layers
from shared.commands import inspect
from shared.errors import AdapterNotFound

MAX = 2**30


@pytest.fixture
def base(goldens):
    return read_linear_layers(goldens / "weights" / "flux2_dev_tiny.safetensors", max_bytes=MAX)


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
        inspect(Path(file), base=None)

    assert message.format(root=root) in str(missing.value)
