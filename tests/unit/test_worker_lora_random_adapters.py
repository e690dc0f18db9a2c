"""Random adapters of every kind, layout, rank and source of alpha, compared with formulas in float64."""

from dataclasses import replace

import pytest
import torch
from random_adapters import KINDS, LIMITS, Draw, distance, effective_weights, hold_to_formulas, random_files, write_file
from safetensors.torch import load_file

from worker.lora.hot_swap import AdapterSwapper
from worker.model.load import load_components
from worker.model.placement import Placement
from worker.model.qfloat8 import dense_weight


@pytest.fixture(scope="module")
def load(model_settings):
    def make(precision):
        return load_components(model_settings(precision), device=torch.device("cpu"), hf_token=None)

    return make


@pytest.mark.parametrize(("precision", "mode", "limit"), LIMITS)
def test_each_layer_multiplies_by_the_weight_of_its_kinds_formula(precision, mode, limit, load, tmp_path):
    components = load(precision)
    swapper = AdapterSwapper(replace(components, placement=Placement("resident", "host", 0)))
    # Adapters are merged into the bfloat16 values that float8 weights are made from.
    base = effective_weights(load("bf16") if precision == "fp8" else components)

    files = random_files(len(precision) + len(mode))
    hold_to_formulas(swapper, files, base=base, mode=mode, limit=limit, folder=tmp_path)


def test_float8_products_multiply_by_the_weight_of_the_formula(load, adapter_ref, tmp_path):
    components, base = load("fp8"), effective_weights(load("bf16"))
    swapper, path, layer = AdapterSwapper(components), tmp_path / "made.safetensors", "single_blocks.0.linear1"
    linear1 = components.transformer.single_transformer_blocks[0].attn.to_qkv_mlp_proj
    inputs = Draw(9).normal(1, 32, 64).bfloat16()

    for seed, kind in enumerate(KINDS):
        draw = Draw(seed)
        updates = write_file(path, layout="onetrainer", kind=kind, alpha="tensor", base=base, draw=draw, whole=True)
        swapper.activate([(adapter_ref(path, 0.7), path)])
        expected = base[layer].double()
        for of, rows, update, scale in updates:
            if of == layer:
                expected[rows] = update.merged(scale=scale, multiplier=0.7)

        # Both factors are rounded to float8, in steps of up to 1/8.
        assert distance(linear1(inputs), inputs.double() @ expected.T) < 6e-2, kind


def test_qfloat8_weights_with_a_live_adapter_give_the_latents_of_their_dense_values_with_the_merged_one(
    load, sample, goldens, adapter_ref, tmp_path
):
    quantized, dense = load("qfloat8"), load("bf16")
    with torch.no_grad():
        for name, weight in dense.transformer.named_parameters():
            if weight.ndim == 2:
                weight.copy_(dense_weight(quantized.transformer.get_submodule(name.removesuffix(".weight"))))
    # Restored from copies, since these weights are not those of the file.
    merged = AdapterSwapper(replace(dense, placement=Placement("resident", "host", 0)))
    live, path = AdapterSwapper(quantized), tmp_path / "made.safetensors"
    embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"].bfloat16()
    run = {"width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 4.0, "seed": 1}
    base, without = effective_weights(dense), sample(dense.transformer, embeds, run)
    assert distance(sample(quantized.transformer, embeds, run), without.double()) < 1e-2

    for seed, kind in enumerate(KINDS):
        write_file(path, layout="onetrainer", kind=kind, alpha="tensor", base=base, draw=Draw(seed))
        for swapper in (live, merged):
            swapper.activate([(adapter_ref(path, 0.5), path)])
        expected = sample(dense.transformer, embeds, run).double()
        error = distance(sample(quantized.transformer, embeds, run), expected)

        assert error < 0.5 * distance(without, expected), kind


@pytest.mark.parametrize("kind", KINDS)
def test_an_unmerged_adapter_gives_the_latents_of_the_merged_one(kind, load, sample, goldens, adapter_ref, tmp_path):
    components = load("fp32")
    swapper, path = AdapterSwapper(components), tmp_path / "made.safetensors"
    embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"]
    run = {"width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 4.0, "seed": 1}
    base, without = effective_weights(components), sample(components.transformer, embeds, run)

    for seed, layout in enumerate(["diffusers", "onetrainer", "kohya"]):
        draw = Draw(seed)
        write_file(path, layout=layout, kind=kind, alpha="tensor", base=base, draw=draw)
        latents = {}
        for mode in ("merged", "live"):
            swapper.activate([(adapter_ref(path, 0.7), path)], mode=mode)
            latents[mode] = sample(components.transformer, embeds, run)

        assert distance(latents["live"], latents["merged"].double()) < 1e-4, layout
        assert distance(latents["merged"], without.double()) > 1e-2, layout
