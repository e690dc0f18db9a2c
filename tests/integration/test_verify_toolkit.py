"""Our results equal those of AI Toolkit's own classes, run on this machine from a checkout at AI_TOOLKIT_PATH."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from worker.commands import app
from worker.rendering.toolkit_checkout import load_toolkit

ROOT = os.environ.get("AI_TOOLKIT_PATH")  # read at import: a fixture removes it from the tests' environment

pytestmark = pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout of AI Toolkit")


def differing(folder):
    """Run the comparison; return the number of cases and the unequal ones."""
    done = CliRunner().invoke(app, ["verify", str(folder), "--against-toolkit", "--toolkit", ROOT, "--json"])
    outcomes = json.loads(done.stdout)["outcomes"]
    return len(outcomes), [outcome for outcome in outcomes if not outcome["exact"]]


def write_model(folder, toolkit, name, **params):
    """Write an AI Toolkit transformer with random weights, and its sidecar."""
    stated = toolkit.transformer_params(in_channels=128, **params)
    weights = toolkit.transformer(stated).bfloat16().state_dict()
    save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(asdict(stated)))


def write_autoencoder(folder, toolkit, **params):
    stated = toolkit.autoencoder_params(**params)
    weights = toolkit.autoencoder(stated).bfloat16().state_dict()
    save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / "ae_other.safetensors")
    (folder / "ae_other.json").write_text(json.dumps(asdict(stated)))


def sampling_case(folder, name, *, model, batch, guidance_scale, true_cfg):
    """Write the inputs of a run of 80x112 pixels in three steps."""
    generator = torch.Generator("cpu").manual_seed(9)
    embeds = torch.randn(2, batch, 13, 60, generator=generator)
    tensors = {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "initial_latents": torch.randn(batch, 128, 7, 5, generator=generator),
    }
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    run = {"width": 80, "height": 112, "num_inference_steps": 3, "guidance_scale": guidance_scale, "seed": 77}
    return {
        "type": "sampling", "name": name, "model": model, "dtype": "fp32", "file": f"{name}.safetensors",
        "true_cfg": true_cfg, "tolerance": {}, **run,
    }  # fmt: skip


def forward_case(folder, toolkit, name, *, dtype):
    """Write one call of the dev transformer in `folder`, and AI Toolkit's result for it on this machine."""
    stated = json.loads((folder / "weights/flux2_dev_other.json").read_text())
    transformer = toolkit.transformer(toolkit.transformer_params(**stated))
    transformer.load_state_dict(load_file(folder / "weights/flux2_dev_other.safetensors"))
    rows = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(5), torch.arange(1))
    words = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(13))
    generator = torch.Generator("cpu").manual_seed(4)
    floats = {
        "x": torch.randn(2, 15, 128, generator=generator),
        "ctx": torch.randn(2, 13, 60, generator=generator),
        "timesteps": torch.tensor([0.9, 0.3]),
        "guidance": torch.tensor([4.0, 1.0]),
    }
    inputs = {key: value.to(dtype) for key, value in floats.items()}
    inputs |= {"x_ids": rows.repeat(2, 1, 1), "ctx_ids": words.repeat(2, 1, 1)}
    with torch.no_grad():
        pred = transformer.to(dtype)(**inputs)
    save_file({**inputs, "pred": pred}, folder / f"{name}.safetensors")
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return {
        "type": "forward", "model": "dev", "dtype": precision, "file": f"{name}.safetensors",
        "tolerance": {"rel_l2": 1e-5},
    }  # fmt: skip


@pytest.fixture
def other_widths(tmp_path):
    """Goldens with other widths, depths, head splits and rotary bases; sampling cases have inputs only."""
    toolkit = load_toolkit(Path(ROOT))
    torch.manual_seed(0)
    weights = tmp_path / "weights"
    weights.mkdir()
    shape = {"hidden_size": 96, "num_heads": 3, "context_in_dim": 60, "depth": 1, "depth_single_blocks": 3}
    write_model(
        weights, toolkit, "flux2_dev_other", **shape, axes_dim=[4, 12, 12, 4], theta=700, mlp_ratio=2.0,
        use_guidance_embed=True,
    )  # fmt: skip
    write_model(
        weights, toolkit, "flux2_klein_other", **shape, axes_dim=[8, 8, 8, 8], theta=2000, mlp_ratio=4.0,
        use_guidance_embed=False,
    )  # fmt: skip
    write_autoencoder(weights, toolkit, ch=32, ch_mult=[1, 2, 2, 1], num_res_blocks=2)
    runs = [
        sampling_case(tmp_path, "dev", model="dev", batch=1, guidance_scale=2.5, true_cfg=False),
        sampling_case(tmp_path, "dev_batch", model="dev", batch=3, guidance_scale=4.0, true_cfg=False),
        sampling_case(tmp_path, "klein", model="klein", batch=1, guidance_scale=3.0, true_cfg=True),
    ]
    runs += [
        forward_case(tmp_path, toolkit, "fp32", dtype=torch.float32),
        forward_case(tmp_path, toolkit, "bf16", dtype=torch.bfloat16),
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": runs}))
    return tmp_path


def test_the_goldens_inputs_give_equal_results_in_both_precisions(goldens):
    count, different = differing(goldens)

    assert different == []
    assert count == 2 * (4 + 14 + 10 + 12 + 3)  # forward, sampling, reference, adapters, text


def test_other_widths_and_head_splits_give_equal_results(other_widths):
    count, different = differing(other_widths)

    assert different == []
    assert count == 2 * (3 + 2)


def test_goldens_of_other_widths_are_exact_on_the_machine_that_made_them(other_widths):
    done = CliRunner().invoke(app, ["verify", str(other_widths), "--only", "forward"])

    assert done.exit_code == 0
    assert done.stdout.splitlines()[-2:] == ["2 of 2 exact", "2 passed, 0 failed"]
