"""A converted adapter has the same update, to the bit, and every tensor of the target layout; the rest is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared.adapters.header import read_header
from shared.adapters.layout import parse_layout
from shared.errors import AdapterRefused, OutputRefused
from worker.conversion import convert
from worker.conversion.convert import convert_adapter
from worker.conversion.target import TargetLayout
from worker.lora.merge import weight_delta

MAX = 2**30
BFL, DIFFUSERS = TargetLayout.AI_TOOLKIT, TargetLayout.DIFFUSERS
Q, K, V = (f"transformer.transformer_blocks.0.attn.to_{name}." for name in "qkv")
QKV = "diffusion_model.double_blocks.0.img_attn.qkv."


def updates_of(file, multiplier):
    """The change of every row of every layer, (out, in), and the magnitudes of a DoRA, (out,)."""
    layout, tensors = parse_layout(read_header(file, max_bytes=MAX)), load_file(file)
    found = {}
    for update in layout.updates:
        delta = weight_delta(update, tensors, multiplier=multiplier)
        rows = update.rows
        size = update.shape[0] // len(rows.parts)
        for name, values in (("values", delta.values), ("magnitude", delta.magnitude)):
            if values is not None:
                whole = found.setdefault((update.layer, name), torch.zeros(size * rows.part_count, *values.shape[1:]))
                for part, piece in zip(rows.parts, values.chunk(len(rows.parts)), strict=True):
                    whole[part * size : (part + 1) * size] = piece
    return found


def assert_same_update(file, other):
    for multiplier in (1.0, -0.7):
        expected, found = updates_of(file, multiplier), updates_of(other, multiplier)
        assert expected.keys() == found.keys()
        for key in expected:
            # Rows without an update may get an update of -0.
            assert torch.equal((expected[key] + 0.0).view(torch.int32), (found[key] + 0.0).view(torch.int32)), key


def values(*shape, seed=0, dtype=torch.bfloat16):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


def lora(module, *, rank=4, rows=64, columns=64, seed=0, dtype=torch.bfloat16):
    return {
        f"{module}lora_A.weight": values(rank, columns, seed=seed, dtype=dtype),
        f"{module}lora_B.weight": values(rows, rank, seed=seed + 1, dtype=dtype),
    }


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


FILES = [
    "adapters/lora_r4_bf16",
    "adapters/lora_mixedrank_bf16",
    "adapters/lora_subset_bf16",
    "adapters/lora_alllinear_bf16",
    "adapters/lora_r8_alpha1cfg_fp16",
    "adapters/dora_bf16",
    "adapters_hand/transformer_prefix_AB",
    "adapters_hand/bare_prefix_AB",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", TargetLayout)
def test_a_lora_in_both_layouts_and_back_has_the_same_update(name, target, goldens, out, tmp_path):
    source = goldens / f"{name}.safetensors"
    again = tmp_path / "again.safetensors"

    convert_adapter(source, out, target, max_bytes=MAX)
    convert_adapter(out, again, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert_same_update(source, again)


def test_diffusers_and_back_gives_the_trainers_own_tensors(goldens, out, tmp_path):
    source = goldens / "adapters/lora_r4_bf16.safetensors"
    again = tmp_path / "again.safetensors"

    convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)
    convert_adapter(out, again, BFL, max_bytes=MAX)

    expected, found = load_file(source), load_file(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    keys = load_file(out).keys()
    assert len(keys) == 2 * 28  # q, k and v apart
    assert {key.split(".")[0] for key in keys} == {"transformer"}


@pytest.mark.parametrize("target", TargetLayout)
def test_a_dora_that_scales_columns_is_refused(target, written, out):
    tensors = lora(QKV, rows=192) | {f"{QKV}dora_scale": torch.ones(1, 64)}

    with pytest.raises(AdapterRefused, match="an update with a length for each column, and AI Toolkit and diffusers"):
        convert_adapter(written(tensors), out, target, max_bytes=MAX)

    assert not out.exists()


def test_a_lokr_with_magnitudes_is_refused(written, out):
    tensors = {f"{QKV}lokr_w1": values(8, 8), f"{QKV}lokr_w2": values(24, 8), f"{QKV}dora_scale": torch.ones(192, 1)}

    with pytest.raises(AdapterRefused, match="a length for each row of a lokr"):
        convert_adapter(written(tensors), out, BFL, max_bytes=MAX)


@pytest.mark.parametrize(
    "name",
    [
        "adapters/lokr_full_bf16",
        "adapters/lokr_full_f4_fp16",
        "adapters/lokr_lowrank_bf16",
        "adapters/lokr_old_lycoris_bf16",
        "adapters/lora_plus_diff_bf16",
        "adapters/fullrank_bf16",
        "adapters_hand/lokr_w1ab_w2ab_alpha",
        "adapters_hand/lokr_lowrank_no_alpha",
    ],
)
def test_other_kinds_are_written_for_ai_toolkit_and_refused_for_diffusers(name, goldens, out):
    source = goldens / f"{name}.safetensors"

    convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    with pytest.raises(AdapterRefused, match="has only LoRA and DoRA; use --to ai-toolkit"):
        convert_adapter(source, out, DIFFUSERS, max_bytes=MAX, overwrite=True)


@pytest.mark.parametrize("name", ["AB_alpha_mixedrank", "downup_alpha_mixedrank"])
def test_scales_that_are_no_power_of_two_go_into_the_header_for_diffusers(name, goldens, out):
    source = goldens / f"adapters_hand/{name}.safetensors"

    done = convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)

    assert_same_update(source, out)
    assert (done.scales, done.stored) == ((0.25, 0.5, 1.0, 1.5, 2.0), (1.5,))
    assert "scale 0.25, 0.5, 2 is part of the factors; scale 1.5 is stored as alpha" in done.describe()
    with pytest.raises(AdapterRefused, match=r"has the scale 1\.5, and AI Toolkit reads no alpha"):
        convert_adapter(source, out, BFL, max_bytes=MAX, overwrite=True)


@pytest.mark.parametrize("target", TargetLayout)
def test_a_power_of_two_becomes_part_of_the_factors(target, written, out):
    source = written(lora(QKV, rows=192) | {f"{QKV}alpha": torch.tensor(0.5)})

    done = convert_adapter(source, out, target, max_bytes=MAX)

    assert_same_update(source, out)
    assert (done.scales, done.stored) == ((0.125,), ())
    assert not [key for key in load_file(out) if key.endswith("alpha")]
    with safe_open(out, "pt") as opened:
        assert "lora_adapter_metadata" not in opened.metadata()


def test_another_scale_stays_alpha_even_where_a_factor_could_hold_it(written, out):
    # Small integers times 0.75 are exact in float32, but a sum of such products rounds elsewhere.
    tensors = {key: (tensor * 100).round().float() for key, tensor in lora(Q).items()}
    source = written({**tensors, f"{Q}alpha": torch.tensor(3.0)})

    done = convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)

    assert done.stored == (0.75,)
    assert_same_update(source, out)


def test_a_power_of_two_that_float16_cannot_hold_in_one_factor_goes_into_the_other(written, out):
    tensors = lora(QKV, rows=192, dtype=torch.float16)
    tensors[f"{QKV}lora_B.weight"][0, 0] = 6e-8  # the smallest that float16 has
    source = written(tensors | {f"{QKV}alpha": torch.tensor(2.0)})

    convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    found = load_file(out)
    assert torch.equal(found[f"{QKV}lora_B.weight"], tensors[f"{QKV}lora_B.weight"])
    assert torch.equal(found[f"{QKV}lora_A.weight"], tensors[f"{QKV}lora_A.weight"] / 2)


def test_a_power_of_two_that_no_factor_can_hold_is_stored_as_alpha_or_refused(written, out):
    tensors = lora(QKV, rows=192, dtype=torch.float16)
    for half in "AB":
        tensors[f"{QKV}lora_{half}.weight"][0, 0] = 6e-8
    source = written(tensors | {f"{QKV}alpha": torch.tensor(2.0)})

    convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)

    assert_same_update(source, out)
    with pytest.raises(AdapterRefused, match=r"has the scale 0\.5"):
        convert_adapter(source, out, BFL, max_bytes=MAX, overwrite=True)


def test_q_k_and_v_with_one_lora_a_become_one_layer_of_the_same_rank(written, out):
    shared = values(4, 64)
    source = written({key: shared.clone() if "lora_A" in key else tensor for key, tensor in (
        lora(Q, seed=1) | lora(K, seed=3) | lora(V, seed=5)
    ).items()})  # fmt: skip

    done = convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert done.ranks == (4,)
    assert load_file(out).keys() == {f"{QKV}lora_A.weight", f"{QKV}lora_B.weight"}


def test_q_k_and_v_with_factors_of_their_own_become_one_layer_with_the_sum_of_their_ranks(written, out):
    source = written(lora(Q, rank=2, seed=1) | lora(K, rank=4, seed=3) | lora(V, rank=8, seed=5))

    done = convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert done.ranks == (14,)


def test_a_layer_of_which_only_q_is_trained_gets_zeros_for_k_and_v(written, out):
    source = written(lora(Q))

    convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert load_file(out)[f"{QKV}lora_B.weight"][64:].abs().max() == 0


def test_factors_of_two_dtypes_are_put_together_in_float32(written, out):
    source = written(lora(Q) | lora(K, dtype=torch.float16, seed=3))

    convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float32}


def test_factors_in_float8_are_cut_and_put_together(written, out, tmp_path):
    source = written(lora(QKV, rows=192, dtype=torch.float8_e4m3fn))
    again = tmp_path / "again.safetensors"

    convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)
    convert_adapter(out, again, BFL, max_bytes=MAX)

    assert_same_update(source, out)
    assert_same_update(source, again)


def test_ranks_whose_sum_rounds_differently_are_refused(written, out, monkeypatch):
    source = written(lora(Q, rank=2, seed=1) | lora(K, rank=2, seed=3))
    monkeypatch.setattr("worker.conversion.factors._has_same_product", lambda *parts: False)

    with pytest.raises(AdapterRefused, match="a product of rank 4 rounds differently from theirs"):
        convert_adapter(source, out, BFL, max_bytes=MAX)

    assert not out.exists()


def test_parts_with_different_scales_are_one_layer_only_if_they_are_powers_of_two(written, out):
    parts = lora(Q, seed=1) | lora(K, seed=3) | {f"{Q}alpha": torch.tensor(8.0)}
    source = written(parts)
    convert_adapter(source, out, BFL, max_bytes=MAX)
    assert_same_update(source, out)

    source = written(parts | {f"{K}alpha": torch.tensor(3.0)})
    with pytest.raises(AdapterRefused, match=r"have the scales \[0\.75, 1\.0\]"):
        convert_adapter(source, out, BFL, max_bytes=MAX, overwrite=True)


def test_the_halves_of_the_last_modulation_change_places(written, out, tmp_path):
    module = "diffusion_model.final_layer.adaLN_modulation.1."
    source = written(lora(module, rows=128))
    again = tmp_path / "again.safetensors"

    convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)
    convert_adapter(out, again, BFL, max_bytes=MAX)

    up = load_file(source)[f"{module}lora_B.weight"]
    found = load_file(out)["transformer.norm_out.linear.lora_B.weight"]
    assert torch.equal(found, torch.cat([up[64:], up[:64]]))
    assert_same_update(source, out)
    assert torch.equal(load_file(again)[f"{module}lora_B.weight"], up)


SPLIT = "transformer.single_blocks.0.linear1."
H = 64  # linear1 has 9 H rows: q, k and v with H each, then 6 H of the MLP
WILD = {
    "kohya, musubi-tuner": lora("lora_unet_double_blocks_0_img_attn_qkv.", rows=3 * H)
    | {"lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(2.0)},
    "PEFT": lora("base_model.model.double_blocks.0.img_attn.qkv.", rows=3 * H),
    "ComfyUI": lora("model.diffusion_model.single_blocks.0.linear2."),
    "OneTrainer, split linear1": lora(f"{SPLIT}0.", seed=1) | lora(f"{SPLIT}1.", seed=3) | lora(f"{SPLIT}2.", seed=5)
    | lora(f"{SPLIT}3.", rows=6 * H, rank=2, seed=7),
    "DiffSynth": {
        key.replace("weight", "default.weight"): tensor for key, tensor in lora(Q.removeprefix("transformer.")).items()
    },
    "DoRA in a column": lora(QKV, rows=3 * H) | {f"{QKV}dora_scale": values(3 * H, 1).abs() + 1},
}  # fmt: skip


@pytest.mark.parametrize("target", TargetLayout)
@pytest.mark.parametrize("name", WILD)
def test_the_layouts_of_other_trainers_are_converted_with_the_same_update(name, target, written, out):
    source = written(WILD[name])

    convert_adapter(source, out, target, max_bytes=MAX)

    assert_same_update(source, out)
    prefix = {BFL: "diffusion_model.", DIFFUSERS: "transformer."}[target]
    assert all(key.startswith(prefix) for key in load_file(out))


@pytest.mark.parametrize("target", TargetLayout)
@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 0.5), (True, 1.0)])
def test_a_scale_in_the_header_is_kept(target, use_rslora, scale, written, out):
    config = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.use_rslora": use_rslora}
    source = written(lora(Q) | lora(K, seed=3), {"lora_adapter_metadata": json.dumps(config), "lora_alpha": "2"}
        if not use_rslora else {"lora_adapter_metadata": json.dumps(config)})  # fmt: skip

    done = convert_adapter(source, out, target, max_bytes=MAX)

    assert done.scales == (scale,)
    assert_same_update(source, out)
    with safe_open(out, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_pefts_two_files_become_one(written, out, tmp_path):
    file = written(lora("base_model.model.transformer_blocks.0.attn.to_q.")).rename(
        tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 6}')

    done = convert_adapter(file, out, DIFFUSERS, max_bytes=MAX)

    assert (done.scales, done.stored) == ((1.5,), (1.5,))
    assert parse_layout(read_header(out, max_bytes=MAX)).scale_range == (1.5, 1.5)


@pytest.mark.parametrize("target", TargetLayout)
def test_a_loha_is_refused(target, written, out):
    shapes = {"w1_a": (64, 2), "w1_b": (2, 64), "w2_a": (64, 2), "w2_b": (2, 64)}
    module = "diffusion_model.single_blocks.0.linear2."
    source = written({f"{module}hada_{name}": values(*shape) for name, shape in shapes.items()})

    with pytest.raises(AdapterRefused, match=r"kind 'loha': .*; keep the file as it is"):
        convert_adapter(source, out, target, max_bytes=MAX)


def test_the_config_for_diffusers_names_each_module_whose_rank_or_alpha_differs(written, out):
    source = written(
        lora(QKV, rank=2, rows=192)
        | lora("diffusion_model.single_blocks.1.linear2.", rank=3)
        | {f"{QKV}alpha": torch.tensor(3.0), "diffusion_model.single_blocks.1.linear2.alpha": torch.tensor(1.0)}
    )

    convert_adapter(source, out, DIFFUSERS, max_bytes=MAX)

    with safe_open(out, "pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (2, 3.0)
    assert config["transformer.rank_pattern"] == {"single_transformer_blocks.1.attn.to_out": 3}
    assert config["transformer.alpha_pattern"] == {"single_transformer_blocks.1.attn.to_out": 1.0}
    assert "transformer_blocks.0.attn.to_k" in config["transformer.target_modules"]
    assert_same_update(source, out)


def test_text_encoder_layers_are_left_out_on_request(written, out, tmp_path):
    text_encoder = {f"text_encoder.layers.0.q.{key}": tensor for key, tensor in lora("").items()}
    file = written(lora(Q) | text_encoder)

    with pytest.raises(AdapterRefused, match=r"\(flux2 convert: --ignore-text-encoder\)$"):
        convert_adapter(file, out, DIFFUSERS, max_bytes=MAX)
    convert_adapter(file, out, DIFFUSERS, max_bytes=MAX, ignore=("text_encoder",))

    save_file(lora(Q), tmp_path / "transformer.safetensors")
    assert_same_update(tmp_path / "transformer.safetensors", out)


def test_metadata_is_kept_however_long_except_for_the_scale(written, out):
    kept = {
        "training_info": '{"step": 2000}',
        "ss_base_model_version": "flux2",
        "ss_network_alpha": "8",
        "thumbnail": "x" * 2**21,
    }
    source = written(lora(Q), kept)

    convert_adapter(source, out, BFL, max_bytes=MAX)

    with safe_open(out, "pt") as opened:
        assert opened.metadata() == {"format": "pt", **kept}


def test_another_file_is_replaced_only_with_force(written, out):
    source = written(lora(Q))
    out.write_bytes(b"precious")

    with pytest.raises(OutputRefused, match="exists; choose another name, or replace it with --force"):
        convert_adapter(source, out, BFL, max_bytes=MAX)
    assert out.read_bytes() == b"precious"

    convert_adapter(source, out, BFL, max_bytes=MAX, overwrite=True)
    assert_same_update(source, out)


def test_others_can_read_the_new_file_as_they_can_any_new_file(written, out, tmp_path):
    usual = tmp_path / "usual"
    usual.touch()

    convert_adapter(written(lora(Q)), out, BFL, max_bytes=MAX)

    assert out.stat().st_mode == usual.stat().st_mode


def test_a_file_can_be_converted_in_place(written, goldens, tmp_path):
    file = tmp_path / "mine.safetensors"
    original = goldens / "adapters/lora_r4_bf16.safetensors"
    file.write_bytes(original.read_bytes())

    convert_adapter(file, file, DIFFUSERS, max_bytes=MAX, overwrite=True)

    assert_same_update(original, file)


def test_a_file_that_appears_meanwhile_is_kept(written, out, monkeypatch):
    source = written(lora(Q))
    monkeypatch.setattr(os, "fsync", lambda _: out.write_bytes(b"precious"))

    with pytest.raises(OutputRefused, match="exists"):
        convert_adapter(source, out, BFL, max_bytes=MAX)

    assert out.read_bytes() == b"precious"
    assert sorted(file.name for file in out.parent.iterdir()) == ["out.safetensors", "source.safetensors"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_link_that_leads_nowhere_is_kept(has_links, written, out, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    source = written(lora(Q))
    out.symlink_to("nowhere")
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(OutputRefused, match="exists"):
        convert_adapter(source, out, BFL, max_bytes=MAX)

    assert out.readlink().name == "nowhere"


def test_a_file_system_without_hard_links_gets_the_file_too(written, out, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    source = written(lora(Q))
    monkeypatch.setattr(os, "link", refuse)

    convert_adapter(source, out, BFL, max_bytes=MAX)

    assert_same_update(source, out)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(written, out, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    source = written(lora(Q))
    out.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OutputRefused, match="No space left on device; choose another place"):
        convert_adapter(source, out, BFL, max_bytes=MAX, overwrite=True)

    assert out.read_bytes() == b"old"
    assert sorted(file.name for file in out.parent.iterdir()) == ["out.safetensors", "source.safetensors"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("out.bin", "does not end in .safetensors"),
        ("no/out.safetensors", "does not exist"),
        (f"{'n' * 300}.safetensors", "File name too long; choose another place"),
        (f"{'n' * 300}/out.safetensors", "does not exist"),
    ],
)
def test_a_place_where_no_adapter_can_be_is_refused(name, reason, written, tmp_path):
    with pytest.raises(OutputRefused, match=reason):
        convert_adapter(written(lora(Q)), tmp_path / name, BFL, max_bytes=MAX)


def flux2_convert(*arguments):
    command = [sys.executable, "-m", "shared.cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_wrote_and_in_one_line_what_it_cannot_write(goldens, out):
    done = flux2_convert(goldens / "adapters/lora_r4_bf16.safetensors", out, "--to", "diffusers")
    again = flux2_convert(goldens / "adapters/lokr_full_bf16.safetensors", out, "--to", "diffusers", "--force")

    assert (done.returncode, done.stdout) == (0, f"{out}: lora of 20 layers, rank 4\n")
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1
    assert "diffusers' layout has only LoRA and DoRA" in again.stderr
    assert_same_update(goldens / "adapters/lora_r4_bf16.safetensors", out)


def test_the_command_is_not_torch_until_it_runs():
    assert convert.__name__ in sys.modules
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "shared.cli", "convert", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "torch" not in listed.stderr
