"""The arithmetic of merging, by hand and against weights that the trainer's own `merge_in` gave."""

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import AdapterMismatch, AdapterNotFound, AdapterRefused
from worker.lora.merge import add, lora_delta
from worker.lora.read import read_adapter
from worker.pipeline.bfl import layer_parts
from worker.pipeline.cache import WarmPipeline

CPU = torch.device("cpu")
LORAS = ["lora_r4_bf16", "lora_mixedrank_bf16", "lora_subset_bf16", "lora_alllinear_bf16", "lora_r8_alpha1cfg_fp16"]


def bfl_weights(transformer):
    """Put the diffusers parameters of each layer back together, keyed as in the goldens."""
    parameters, weights = dict(transformer.named_parameters()), {}
    for layer, parts in layer_parts(transformer).items():
        rows = {}
        for name, origin in parts:
            pieces = parameters[name].chunk(len(origin.parts))
            rows.update(zip(origin.parts, pieces, strict=True))
        weights[f"{layer}.weight"] = torch.cat([rows[index] for index in sorted(rows)])
    return weights


def test_delta_matches_a_hand_worked_rank_one_example():
    down = torch.tensor([[1.0, 2.0]])  # rank 1, in 2
    up = torch.tensor([[3.0], [4.0]])  # out 2, rank 1

    delta = lora_delta(down, up, alpha=2.0, multiplier=0.5)

    # 0.5 * 2 / 1 = 1, so the outer product itself
    assert delta.tolist() == [[3.0, 6.0], [4.0, 8.0]]


def test_alpha_is_divided_by_the_rank():
    down, up = torch.eye(2), torch.eye(2)  # rank 2

    assert lora_delta(down, up, alpha=1.0, multiplier=1.0).tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_delta_is_computed_in_float32():
    down = torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)
    up = torch.tensor([[1.0 + 2**-7]], dtype=torch.bfloat16)

    delta = lora_delta(down, up, alpha=1.0, multiplier=1.0)

    assert delta.dtype == torch.float32
    assert delta.tolist() == [[1.0 + 2**-7, 2**-9 + 2**-16]]  # bfloat16 has no room for the last


def test_the_sum_is_rounded_once():
    # bfloat16 has steps of 2**-7 above 1. A delta of just over half a step goes up; rounded to bfloat16 by itself it
    # would be exactly half a step, a tie that goes down to the even 1.0.
    weight = torch.tensor([1.0], dtype=torch.bfloat16)

    add(weight, torch.tensor([2**-8 + 2**-20]), layer="img_in")

    assert weight.tolist() == [1.0 + 2**-7]


def test_adding_nothing_leaves_even_negative_zeros():
    weight = torch.tensor([-0.0, 1.0])

    add(weight, torch.zeros(2), layer="img_in")

    assert torch.signbit(weight).tolist() == [True, False]


def test_a_sum_that_overflows_leaves_the_weight():
    weight = torch.tensor([1.0, 3e38])

    with pytest.raises(AdapterRefused, match=r"^img_in: .* not finite"):
        add(weight, torch.tensor([1.0, 3e38]), layer="img_in")

    assert weight.tolist() == torch.tensor([1.0, 3e38]).tolist()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LORAS)
def test_merged_weights_and_images_are_the_trainers(
    name, precision, components, goldens, cases, sample, adapter_ref, assert_close
):
    (case,) = cases(type="adapter", name=name)
    path, golden = goldens / case["file"], load_file(goldens / case["expected"])
    model = components(precision)
    prompt_embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"].to(model.dtype)
    before = {key: weight.clone() for key, weight in bfl_weights(model.transformer).items()}
    rows = slice(case["merged_rows"]["start"], None, case["merged_rows"]["stride"])
    warm = WarmPipeline(model)

    for multiplier in case["multipliers"]:
        warm.use([(adapter_ref(path, multiplier), path)])

        merged, suffix = bfl_weights(model.transformer), f"{precision}_m{multiplier}"
        for key in case["changed_weights"]:
            assert torch.equal(merged[key][rows], golden[f"merged_{suffix}/{key}"]), key
        assert all(torch.equal(merged[key], before[key]) for key in before.keys() - set(case["changed_weights"]))
        latents = sample(model.transformer, prompt_embeds, case["run"])
        assert_close(latents, golden[f"latents_merged_{suffix}"], case["tolerance"][f"latents_{precision}"])


def test_alphas_and_ranks_that_differ_by_layer_are_heeded(
    components, goldens, cases, sample, adapter_ref, assert_close
):
    (case,) = cases(type="adapter_hand", name="AB_alpha_mixedrank")
    path, golden = goldens / case["file"], load_file(goldens / case["expected"])
    model = components("fp32")
    prompt_embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"]

    for multiplier in case["multipliers"]:
        _, (report,) = WarmPipeline(model).use([(adapter_ref(path, multiplier), path)])
        latents = sample(model.transformer, prompt_embeds, case["run"])
        model = components("fp32")

        assert_close(
            latents, golden[f"AB_alpha_mixedrank/latents_fp32_m{multiplier}"], case["tolerance"]["latents_fp32"]
        )
        assert report.ranks == (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nonfinite", AdapterRefused, r"double_blocks\.0\.img_attn\.qkv\.lora_[AB]\.weight' holds a value that is not"),
        ("shape_mismatch", AdapterMismatch, r"double_blocks\.0\.img_attn\.qkv"),
        ("wholly_unmatched", AdapterRefused, r"blocks_x\.double_blocks"),
        ("partly_unmatched", AdapterRefused, r"double_blocks\.97\.img_attn\.qkv"),
        ("missing_B", AdapterRefused, r"double_blocks\.0\.img_attn\.qkv\.lora_A\.weight"),
    ],
)
def test_a_broken_file_is_refused_by_key_and_changes_nothing(name, error, words, components, goldens, adapter_ref):
    path = goldens / f"adapters_hand/{name}.safetensors"
    model = components("bf16")
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    warm = WarmPipeline(model)

    with pytest.raises(error, match=words):
        warm.use([(adapter_ref(path), path)])

    assert all(torch.equal(value, before[key]) for key, value in model.transformer.state_dict().items())
    assert warm.adapter_key == "base"


def test_a_file_that_changed_after_the_job_was_accepted_is_refused(components, goldens, adapter_ref, tmp_path):
    model, path = components("bf16"), tmp_path / "lora.safetensors"
    path.write_bytes((goldens / "adapters/lora_r4_bf16.safetensors").read_bytes())
    ref = adapter_ref(path)
    path.write_bytes((goldens / "adapters/lora_subset_bf16.safetensors").read_bytes())

    with pytest.raises(AdapterRefused, match="changed since the job was accepted"):
        read_adapter(ref, path, model="flux2", layers=model.layers, device=CPU)


def test_a_file_that_is_gone_is_not_found(components, goldens, adapter_ref, tmp_path):
    model, path = components("bf16"), goldens / "adapters/lora_r4_bf16.safetensors"

    with pytest.raises(AdapterNotFound):
        read_adapter(adapter_ref(path), tmp_path / "gone.safetensors", model="flux2", layers=model.layers, device=CPU)
