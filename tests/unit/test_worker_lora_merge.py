"""The arithmetic of merging, by hand and against weights that the trainer's own `merge_in` gave."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.adapters.kinds import LayerUpdate
from shared.adapters.names import parse_target
from shared.errors import AdapterMismatch, AdapterNotFound, AdapterRefused
from shared.layer_names import Rows, Target
from worker.checkpoint.tensor_names import layer_parts
from worker.lora.hot_swap import AdapterSwapper
from worker.lora.load import read_adapter
from worker.lora.merge import DenseDelta, lokr_delta, lora_delta, row_scales, weight_delta, write_merged

ADAPTERS = [
    "lora_r4_bf16",
    "lora_mixedrank_bf16",
    "lora_subset_bf16",
    "lora_alllinear_bf16",
    "lora_r8_alpha1cfg_fp16",
    "lora_plus_diff_bf16",
    "lokr_full_bf16",
    "lokr_full_f4_fp16",
    "lokr_lowrank_bf16",
    "lokr_old_lycoris_bf16",
    "dora_bf16",
    "fullrank_bf16",
]


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


def same_bits(left, right):
    words = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left.view(words), right.view(words))


def test_delta_matches_a_hand_worked_rank_one_example():
    down = torch.tensor([[1.0, 2.0]])  # rank 1, in 2
    up = torch.tensor([[3.0], [4.0]])  # out 2, rank 1

    delta = lora_delta(down, up, scale=2.0, multiplier=0.5)

    # 0.5 * 2 = 1, so the outer product itself
    assert delta.tolist() == [[3.0, 6.0], [4.0, 8.0]]


def test_alpha_is_divided_by_the_rank():
    update = LayerUpdate("layer", "lora", {"down": "A", "up": "B", "alpha": "alpha"}, (2, 2), rank=2)
    tensors = {"A": torch.eye(2), "B": torch.eye(2), "alpha": torch.tensor(1.0)}

    assert weight_delta(update, tensors, multiplier=1.0).values.tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_delta_is_computed_in_float32():
    down = torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)
    up = torch.tensor([[1.0 + 2**-7]], dtype=torch.bfloat16)

    delta = lora_delta(down, up, scale=1.0, multiplier=1.0)

    assert delta.dtype == torch.float32
    assert delta.tolist() == [[1.0 + 2**-7, 2**-9 + 2**-16]]  # bfloat16 has no room for the last


def test_a_kronecker_product_repeats_the_second_factor_in_blocks():
    w1 = torch.tensor([[1.0, 2.0]])  # (1, 2): two blocks side by side
    w2 = torch.tensor([[3.0, 4.0], [5.0, 6.0]])

    delta = lokr_delta(w1, w2, scale=0.5, multiplier=-2.0)

    # 0.5 * -2 = -1; the left block is -1 * 1 * w2, the right one -1 * 2 * w2
    assert delta.tolist() == [[-3.0, -4.0, -6.0, -8.0], [-5.0, -6.0, -10.0, -12.0]]


def test_rows_are_scaled_from_their_lengths_to_the_magnitudes():
    weight = torch.tensor([[3.0, 4.0], [0.0, -2.0]])  # rows of length 5 and 2

    assert row_scales(weight, torch.tensor([10.0, 1.0])).tolist() == [[2.0], [0.5]]


def put(weight, delta):
    """Merge an update; return whether the weight has stayed finite."""
    non_finite = torch.zeros((), dtype=torch.int32)
    write_merged(weight, delta, old=weight, non_finite=non_finite)
    return not non_finite


def test_a_dora_scales_the_sum_of_weight_and_delta():
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    delta = torch.tensor([[0.0, 4.0], [0.0, 0.0]])  # the first row becomes (3, 4), of length 5

    put(weight, DenseDelta(delta, torch.tensor([10.0, 3.0])))

    assert weight.tolist() == [[6.0, 8.0], [0.0, 3.0]]


def test_a_dora_changes_lengths_even_where_its_delta_is_zero():
    weight = torch.tensor([[3.0, 4.0]])

    put(weight, DenseDelta(torch.zeros(1, 2), torch.tensor([10.0])))

    assert weight.tolist() == [[6.0, 8.0]]


@pytest.mark.parametrize(("rows", "finite"), [([[1.0, 0.0], [0.0, 0.0]], False), ([[1.0, 0.0], [0.0, 2.0]], True)])
def test_a_dora_row_without_a_direction_is_marked_as_not_finite(rows, finite):
    weight = torch.tensor(rows)

    assert put(weight, DenseDelta(torch.zeros(2, 2), torch.ones(2))) is finite


def test_selected_rows_keep_their_magnitudes():
    delta = DenseDelta(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([4.0, 5.0, 6.0]))

    last = delta.select_rows(lambda rows: rows[2:])

    assert (last.values.tolist(), last.magnitude.tolist()) == ([[3.0]], [6.0])


def test_a_dora_of_columns_scales_each_column_to_its_magnitude():
    weight = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    delta = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])  # the columns become (3, 4), (0, 1) and zeros

    (whole,) = DenseDelta(delta, torch.tensor([[10.0, 3.0, 2.0]])).split([lambda rows: rows], olds=[weight])
    put(weight, whole)

    torch.testing.assert_close(weight, torch.tensor([[6.0, 0.0, 0.0], [8.0, 3.0, 0.0]]))


def test_a_columns_length_is_that_of_all_parts_of_the_layer():
    weight = torch.tensor([[3.0], [4.0]])
    selects = [lambda rows: rows[:1], lambda rows: rows[1:]]

    parts = DenseDelta(torch.zeros(2, 1), torch.tensor([[10.0]])).split(selects, olds=list(weight.split(1)))
    for rows, part in zip(weight.split(1), parts, strict=True):
        put(rows, part)

    torch.testing.assert_close(weight, torch.tensor([[6.0], [8.0]]))


def test_the_sum_is_rounded_once():
    # bfloat16 has steps of 2**-7 above 1. A delta of just over half a step goes up; rounded to bfloat16 by itself it
    # would be exactly half a step, a tie that goes down to the even 1.0.
    weight = torch.tensor([1.0], dtype=torch.bfloat16)

    put(weight, DenseDelta(torch.tensor([2**-8 + 2**-20])))

    assert weight.tolist() == [1.0 + 2**-7]


@pytest.mark.parametrize(("delta", "finite"), [(3e38, False), (-3e38, True)])
def test_a_sum_that_overflows_is_marked_as_not_finite(delta, finite):
    assert put(torch.tensor([1.0, 3e38]), DenseDelta(torch.tensor([1.0, delta]))) is finite


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_and_images_are_the_trainers(
    name, precision, components, goldens, cases, sample, adapter_ref, assert_close
):
    (case,) = cases(type="adapter", name=name)
    path, golden = goldens / case["file"], load_file(goldens / case["expected"])
    model = components(precision)
    prompt_embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"].to(model.dtype)
    before = {key: weight.clone() for key, weight in bfl_weights(model.transformer).items()}
    rows = slice(case["merged_rows"]["start"], None, case["merged_rows"]["stride"])
    swapper = AdapterSwapper(model)

    for multiplier in case["multipliers"]:
        swapper.activate([(adapter_ref(path, multiplier), path)])

        merged, suffix = bfl_weights(model.transformer), f"{precision}_m{multiplier}"
        for key in case["changed_weights"]:
            assert torch.equal(merged[key][rows], golden[f"merged_{suffix}/{key}"]), key
        assert {key for key in before if not same_bits(merged[key], before[key])} == set(case["changed_weights"])
        latents = sample(model.transformer, prompt_embeds, case["run"])
        route = "live" if name == "dora_bf16" else "merged"  # the trainer never merges DoRA
        assert_close(latents, golden[f"latents_{route}_{suffix}"], case["tolerance"][f"latents_{precision}"])


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0])
@pytest.mark.parametrize(
    ("name", "kind", "ranks", "layers"),
    [
        ("AB_alpha_mixedrank", "lora", (2, 3, 4, 5, 6), 5),
        ("downup_alpha_mixedrank", "lora", (2, 3, 4, 5, 6), 5),
        ("transformer_prefix_AB", "lora", (2, 3, 4, 5, 6), 5),
        ("bare_prefix_AB", "lora", (2, 3, 4, 5, 6), 5),
        ("diffusers_names_AB", "lora", (3, 4), 3),
        ("lokr_w1ab_w2ab_alpha", "lokr", (3, 4, 6), 3),
        ("lokr_lowrank_no_alpha", "lokr", (3, 6), 2),
        ("wild_peft_base_model", "lora", (4,), 10),
        ("wild_kohya_lora_unet", "lora", (4,), 20),
        ("wild_metadata_lora_adapter", "lora", (4,), 10),
        ("wild_dora_magnitude_vector", "dora", (4,), 20),
        ("wild_loha", "loha", (2, 4), 4),
    ],
)
def test_layouts_other_than_the_trainers_give_their_images(
    name, kind, ranks, layers, multiplier, components, goldens, cases, sample, adapter_ref, assert_close
):
    (case,) = cases(type="adapter_hand", name=name)
    path, golden = goldens / case["file"], load_file(goldens / case["expected"])
    model = components("fp32")
    prompt_embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"]

    _, (report,) = AdapterSwapper(model).activate([(adapter_ref(path, multiplier), path)])

    latents = sample(model.transformer, prompt_embeds, case["run"])
    assert_close(latents, golden[f"{name}/latents_fp32_m{multiplier}"], case["tolerance"]["latents_fp32"])
    assert (report.kind, report.ranks, report.layers_touched) == (kind, ranks, layers)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0])
@pytest.mark.parametrize(
    "name",
    ["wild_peft_base_model", "wild_kohya_lora_unet", "wild_metadata_lora_adapter", "wild_dora_magnitude_vector"],
)
def test_a_converted_adapter_gives_the_weights_of_the_one_that_it_was_made_from(
    name, multiplier, precision, components, goldens, cases, adapter_ref
):
    (case,) = cases(type="adapter_hand", name=name)
    (original,) = cases(type="adapter", name=case["same_as"])
    model = components(precision)
    swapper = AdapterSwapper(model)

    def merged(file):
        swapper.activate([(adapter_ref(goldens / file, multiplier), goldens / file)])
        return {key: weight.clone() for key, weight in bfl_weights(model.transformer).items()}

    expected, found = merged(original["file"]), merged(case["file"])

    assert [key for key in expected if not same_bits(expected[key], found[key])] == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nonfinite", AdapterRefused, r"double_blocks\.0\.img_attn\.qkv\.lora_[AB]\.weight' holds a value that is not"),
        ("shape_mismatch", AdapterMismatch, r"double_blocks\.0\.img_attn\.qkv"),
        ("wholly_unmatched", AdapterRefused, r"blocks_x\.double_blocks"),
        ("partly_unmatched", AdapterRefused, r"double_blocks\.97\.img_attn\.qkv"),
        ("missing_B", AdapterRefused, r"double_blocks\.0\.img_attn\.qkv\.lora_A\.weight"),
        ("empty_text_only", AdapterRefused, r"text_encoder\.layers\.0\.q\.lora_A\.weight"),
    ],
)
def test_a_broken_file_is_refused_by_key_and_changes_nothing(name, error, words, components, goldens, adapter_ref):
    path = goldens / f"adapters_hand/{name}.safetensors"
    model = components("bf16")
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    swapper = AdapterSwapper(model)

    with pytest.raises(error, match=words):
        swapper.activate([(adapter_ref(path), path)])

    assert all(torch.equal(value, before[key]) for key, value in model.transformer.state_dict().items())
    assert swapper.warm_key == "base"


def test_a_file_that_changed_after_the_job_was_accepted_is_refused(components, goldens, adapter_ref, tmp_path):
    model, path = components("bf16"), tmp_path / "lora.safetensors"
    path.write_bytes((goldens / "adapters/lora_r4_bf16.safetensors").read_bytes())
    ref = adapter_ref(path)
    path.write_bytes((goldens / "adapters/lora_subset_bf16.safetensors").read_bytes())

    with pytest.raises(AdapterRefused, match="changed since the job was accepted"):
        read_adapter(ref, path, model="flux2", layers=model.layers)


def test_a_file_that_is_gone_is_not_found(components, goldens, adapter_ref, tmp_path):
    model, path = components("bf16"), goldens / "adapters/lora_r4_bf16.safetensors"

    with pytest.raises(AdapterNotFound):
        read_adapter(adapter_ref(path), tmp_path / "gone.safetensors", model="flux2", layers=model.layers)


@pytest.fixture
def merge_file(components, adapter_ref, tmp_path):
    """Write tensors to a file, merge it, and return the pipeline, its report and the BFL weights before and after."""

    def merge(tensors, *, multiplier=1.0, precision="fp32"):
        model, path = components(precision), tmp_path / "made.safetensors"
        save_file(tensors, path)
        before = {key: weight.clone() for key, weight in bfl_weights(model.transformer).items()}
        _, (report,) = AdapterSwapper(model).activate([(adapter_ref(path, multiplier), path)])
        return report, before, bfl_weights(model.transformer)

    return merge


QKV = "double_blocks.0.img_attn.qkv"


def test_the_parts_of_linear1_change_their_own_rows(merge_file):
    # One part has the rows of a third of qkv in 9 parts, the last the 6 parts of the MLP; the model's width is 64.
    prefix = "transformer.single_blocks.0.linear1"
    parts = {0: 64, 1: 64, 2: 64, 3: 384}
    tensors = {f"{prefix}.{part}.diff": torch.full((rows, 64), 1.0 + part) for part, rows in parts.items()}

    _, before, after = merge_file(tensors)

    expected = torch.cat([torch.full((rows, 64), 1.0 + part) for part, rows in parts.items()])
    assert torch.equal(after["single_blocks.0.linear1.weight"], before["single_blocks.0.linear1.weight"] + expected)


@pytest.mark.parametrize("part", [1, 3])
def test_one_part_of_linear1_leaves_the_other_rows(merge_file, part):
    rows = {1: slice(64, 128), 3: slice(192, 576)}[part]
    change = torch.full((rows.stop - rows.start, 64), 0.25)

    _, before, after = merge_file({f"transformer.single_blocks.0.linear1.{part}.diff": change})

    old, new = (weights["single_blocks.0.linear1.weight"] for weights in (before, after))
    expected = old.clone()
    expected[rows] += change
    assert torch.equal(new, expected)


def random_loha(prefix, *, out, features, rank, alpha):
    draw = torch.Generator().manual_seed(5)
    shapes = {"w1_a": (out, rank), "w1_b": (rank, features), "w2_a": (out, rank), "w2_b": (rank, features)}
    tensors = {f"{prefix}.hada_{name}": torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    return {**tensors, f"{prefix}.alpha": torch.tensor(alpha)}


def test_a_loha_adds_the_elementwise_product_of_its_two_products(merge_file):
    layer = "double_blocks.0.img_attn.proj"
    tensors = random_loha(f"lycoris_{layer.replace('.', '_')}", out=64, features=64, rank=4, alpha=2.0)
    w1_a, w1_b, w2_a, w2_b = (tensor.double() for key, tensor in tensors.items() if "hada" in key)

    report, before, after = merge_file(tensors, multiplier=0.5)

    change = after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()
    torch.testing.assert_close(change, (w1_a @ w1_b) * (w2_a @ w2_b) * (2.0 / 4) * 0.5, rtol=1e-5, atol=1e-6)
    assert (report.kind, report.ranks) == ("loha", (4,))


@pytest.mark.parametrize("suffix", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"])
@pytest.mark.parametrize("shape", [(64,), (64, 1)])
def test_a_dora_scales_each_row_to_its_magnitude_under_every_name(merge_file, suffix, shape):
    layer, draw = "double_blocks.0.img_attn.proj", torch.Generator().manual_seed(5)
    down, up = torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw)
    magnitude = torch.rand(64, generator=draw) + 0.5

    _, before, after = merge_file(
        {
            f"{layer}.lora_A.weight": down,
            f"{layer}.lora_B.weight": up,
            f"{layer}{suffix}": magnitude.view(shape).contiguous(),
        }
    )

    turned = before[f"{layer}.weight"].double() + up.double() @ down.double()
    expected = turned * (magnitude.double() / turned.norm(dim=1)).unsqueeze(1)
    torch.testing.assert_close(after[f"{layer}.weight"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64, torch.bfloat16])
def test_an_alpha_scales_alike_in_every_dtype_that_tools_write(merge_file, dtype):
    layer, draw = "double_blocks.0.img_attn.proj", torch.Generator().manual_seed(6)
    down, up = torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw)
    module = f"lora_unet_{layer.replace('.', '_')}"

    _, before, after = merge_file(
        {
            f"{module}.lora_down.weight": down,
            f"{module}.lora_up.weight": up,
            f"{module}.alpha": torch.tensor(6, dtype=dtype),
        }
    )

    change = after[f"{layer}.weight"].double() - before[f"{layer}.weight"].double()
    torch.testing.assert_close(change, up.double() @ down.double() * 1.5, rtol=1e-5, atol=1e-6)


def test_an_alpha_tensor_that_contradicts_the_header_is_refused_with_both_scales(components, adapter_ref, tmp_path):
    path, layer = tmp_path / "made.safetensors", "double_blocks.0.img_attn.proj"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 64), f"{layer}.lora_B.weight": torch.ones(64, 4)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(2.0)}, path, metadata={"lora_alpha": "8"})

    with pytest.raises(AdapterRefused, match=r"its alpha tensor gives the scale 0\.5, but lora_alpha gives 2; remove"):
        AdapterSwapper(components("fp32")).activate([(adapter_ref(path), path)])


def test_an_update_of_one_diffusers_parameter_changes_its_third_of_qkv_only(merge_file):
    difference = torch.full((64, 64), 0.25)

    report, before, after = merge_file({"transformer.transformer_blocks.0.attn.to_k.diff": difference})

    old, new = before[f"{QKV}.weight"], after[f"{QKV}.weight"]
    assert torch.equal(new[64:128], old[64:128] + 0.25)
    assert same_bits(new[:64], old[:64])
    assert same_bits(new[128:], old[128:])
    assert report.layers_touched == 1


def test_an_update_of_norm_out_by_its_diffusers_name_is_in_diffusers_order(merge_file):
    layer = "final_layer.adaLN_modulation.1"
    scale, shift = torch.full((64, 64), 1.0), torch.full((64, 64), 2.0)

    _, before, after = merge_file({"transformer.norm_out.linear.diff": torch.cat([scale, shift])})
    _, _, by_bfl_name = merge_file({f"diffusion_model.{layer}.diff": torch.cat([shift, scale])})

    assert torch.equal(after[f"{layer}.weight"], before[f"{layer}.weight"] + torch.cat([shift, scale]))
    assert same_bits(after[f"{layer}.weight"], by_bfl_name[f"{layer}.weight"])


def test_a_dora_by_thirds_equals_the_dora_of_the_whole_layer(merge_file):
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(192, 4, generator=generator)
    magnitude = torch.rand(192, generator=generator) + 0.5

    def dora(module, rows):
        return {
            f"{module}.lora_A.weight": down.clone(),
            f"{module}.lora_B.weight": up[rows].clone(),
            f"{module}.magnitude": magnitude[rows].clone(),
        }

    thirds = {}
    for index, name in enumerate(["to_q", "to_k", "to_v"]):
        thirds |= dora(f"transformer.transformer_blocks.0.attn.{name}", slice(64 * index, 64 * index + 64))
    report, before, whole = merge_file(dora(f"diffusion_model.{QKV}", slice(None)), multiplier=0.5)
    _, _, parts = merge_file(thirds, multiplier=0.5)

    assert same_bits(whole[f"{QKV}.weight"], parts[f"{QKV}.weight"])
    assert not torch.equal(whole[f"{QKV}.weight"], before[f"{QKV}.weight"])
    assert whole[f"{QKV}.weight"].norm(dim=1).allclose(magnitude)
    assert (report.kind, report.ranks) == ("dora", (4,))


@pytest.mark.parametrize("alpha", [1e10, float("inf")])
def test_the_alpha_of_two_full_lokr_factors_scales_nothing(alpha, merge_file):
    tensors = {"w1": torch.full((8, 8), 0.5), "w2": torch.full((24, 8), 0.25)}
    tensors = {f"diffusion_model.{QKV}.lokr_{name}": tensor for name, tensor in tensors.items()}

    _, before, after = merge_file({**tensors, f"diffusion_model.{QKV}.alpha": torch.tensor(alpha)})

    assert torch.equal(after[f"{QKV}.weight"], before[f"{QKV}.weight"] + 0.125)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_files_in_any_dtype_are_merged_in_float32(dtype, precision, merge_file):
    # 2**-5 apart from 1 is exact in each dtype.
    tensors = {f"lycoris_{QKV.replace('.', '_')}.{role}": torch.full(shape, 1 + 2**-5, dtype=dtype) for role, shape in
               {"lokr_w1": (8, 8), "lokr_w2_a": (24, 2), "lokr_w2_b": (2, 8)}.items()}  # fmt: skip
    alpha = {f"lycoris_{QKV.replace('.', '_')}.alpha": torch.tensor(1.0, dtype=dtype)}

    _, before, after = merge_file({**tensors, **alpha}, precision=precision)

    # w2 = 2 * (1 + 2**-5)**2, and alpha / rank = 1 / 2
    expected = (before[f"{QKV}.weight"].float() + (1 + 2**-5) ** 3).to(before[f"{QKV}.weight"].dtype)
    assert same_bits(after[f"{QKV}.weight"], expected)


def broken_tensors():
    """Each file that must be refused, by what is wrong with it, and the key or layer that the refusal names."""
    key, ones = f"diffusion_model.{QKV}", torch.ones
    pair = {f"{key}.lora_A.weight": ones(4, 64), f"{key}.lora_B.weight": ones(192, 4)}
    low_rank = {f"{key}.lokr_w1": ones(8, 8), f"{key}.lokr_w2_a": ones(24, 2), f"{key}.lokr_w2_b": ones(2, 8)}
    infinite, nan = torch.tensor(float("inf")), torch.tensor(float("nan"))
    return {
        "alpha of a low-rank LoKr": (
            {**low_rank, f"{key}.alpha": infinite},
            rf"{QKV}\.alpha' is inf, which is not finite",
        ),
        "alpha of a LoRA": ({**pair, f"{key}.alpha": infinite}, rf"{QKV}\.alpha' is inf, which is not finite"),
        "ignored alpha that is damaged": (
            {f"{key}.lokr_w1": ones(8, 8), f"{key}.lokr_w2": ones(24, 8), f"{key}.alpha": nan},
            rf"{QKV}\.alpha' holds a value",
        ),
        "infinite LoKr factor": ({**low_rank, f"{key}.lokr_w1": ones(8, 8) * infinite}, rf"{QKV}\.lokr_w1' holds"),
        "NaN magnitude": ({**pair, f"{key}.magnitude": ones(192) * nan}, rf"{QKV}\.magnitude' holds a value"),
        "NaN difference": ({f"{key}.diff": ones(192, 64) * nan}, rf"{QKV}\.diff' holds a value"),
        "difference of a bias": ({f"{key}.diff": ones(192, 64), f"{key}.diff_b": ones(192)}, rf"{QKV}\.diff_b' is"),
        "half a LoRA": ({f"{key}.lora_A.weight": ones(4, 64)}, rf"{QKV}\.lora_A\.weight' is a lora_A without"),
        "Kronecker shape": ({**low_rank, f"{key}.lokr_w1": ones(4, 8)}, rf"{QKV}: expected"),
        "shape of a difference": ({f"{key}.diff": ones(64, 64)}, rf"{QKV}: expected"),
        "magnitude of another length": ({**pair, f"{key}.magnitude": ones(64)}, rf"{QKV}\.magnitude' has shape"),
        "two kinds": ({**pair, **low_rank}, rf"{QKV}\.lo.*two kinds"),
        "overflow": ({f"{key}.diff": torch.full((192, 64), 3e38), "img_in.diff": ones(64, 128)}, f"{QKV}: .*finite"),
    }


@pytest.mark.parametrize("fault", broken_tensors())
def test_a_refused_update_leaves_every_bit(fault, components, adapter_ref, tmp_path):
    tensors, words = broken_tensors()[fault]
    model, path = components("bf16"), tmp_path / "broken.safetensors"
    save_file(tensors, path)
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    swapper = AdapterSwapper(model)

    with pytest.raises(AdapterRefused, match=words.replace(QKV, QKV.replace(".", r"\."))):
        swapper.activate([(adapter_ref(path, 2.0), path)])

    assert all(same_bits(value, before[key]) for key, value in model.transformer.state_dict().items())
    assert swapper.warm_key == "base"
    assert swapper.count_corrupted() == 0


def test_a_lokr_for_another_base_is_refused_by_the_version_in_its_header(components, adapter_ref, tmp_path):
    model, path = components("bf16"), tmp_path / "klein.safetensors"
    save_file({f"{QKV}.diff": torch.ones(192, 64)}, path, metadata={"ss_base_model_version": "flux2_klein_9b"})

    with pytest.raises(AdapterRefused, match="trained on 'flux2_klein_9b'"):
        AdapterSwapper(model).activate([(adapter_ref(path), path)])


def test_each_parameter_of_the_loaded_model_has_the_rows_of_its_name(components):
    parts = layer_parts(components("fp32").transformer)

    for layer, members in parts.items():
        assert parse_target(layer) == Target(layer)
        assert parse_target("lycoris_" + layer.replace(".", "_")) == Target(layer)
        for parameter, origin in members:
            expected = Target(layer, Rows(origin.parts, origin.part_count))
            assert parse_target(parameter.removesuffix(".weight")) == expected
