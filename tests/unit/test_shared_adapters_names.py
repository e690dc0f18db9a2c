"""The names under which adapter files address a layer, and the rows that each stands for."""

import pytest

from shared.adapters.names import parse_target
from shared.layer_names import WHOLE, Rows, Target

QKV = "double_blocks.3.img_attn.qkv"
LAST = "final_layer.adaLN_modulation.1"


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize(
    ("name", "target"),
    [
        (QKV, Target(QKV)),
        (LAST, Target(LAST)),
        ("transformer_blocks.3.attn.to_k", Target(QKV, Rows((1,), 3))),
        ("transformer_blocks.3.attn.add_v_proj", Target("double_blocks.3.txt_attn.qkv", Rows((2,), 3))),
        ("single_transformer_blocks.12.attn.to_out", Target("single_blocks.12.linear2")),
        ("norm_out.linear", Target(LAST, Rows((1, 0), 2))),
    ],
)
def test_both_families_of_names_are_recognised_under_each_prefix(prefix, name, target):
    assert parse_target(prefix + name) == target


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("lycoris_double_blocks_3_img_attn_qkv", QKV),
        ("lycoris_double_blocks_11_txt_mlp_2", "double_blocks.11.txt_mlp.2"),
        ("lycoris_single_blocks_40_linear1", "single_blocks.40.linear1"),
        ("lycoris_time_in_in_layer", "time_in.in_layer"),
        ("lycoris_final_layer_adaLN_modulation_1", LAST),
    ],
)
def test_underscores_of_lycoris_become_the_layers_dots(module, layer):
    assert parse_target(module) == Target(layer)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (WHOLE, WHOLE, True),
        (WHOLE, Rows((1,), 3), True),
        (Rows((1, 0), 2), WHOLE, True),
        (Rows((0,), 3), Rows((0,), 3), True),
        (Rows((0,), 3), Rows((1,), 3), False),
    ],
)
def test_rows_overlap_when_they_share_any(one, other, shared):
    assert one.overlaps(other) is shared
    assert other.overlaps(one) is shared


@pytest.mark.parametrize("number", ["007", "0" * 200 + "7", "1000", "٣"])
def test_a_blocks_number_is_written_as_trainers_write_it(number):
    assert parse_target(f"transformer_blocks.{number}.attn.to_k") is None


# From the conversion script of diffusers, by part of a double block: the layer, and which third of its rows.
DOUBLE_BLOCK = {
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1), "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2), "attn.to_out.0": ("img_attn.proj", None),
    "attn.to_add_out": ("txt_attn.proj", None), "ff.linear_in": ("img_mlp.0", None),
    "ff.linear_out": ("img_mlp.2", None), "ff_context.linear_in": ("txt_mlp.0", None),
    "ff_context.linear_out": ("txt_mlp.2", None),
}  # fmt: skip


@pytest.mark.parametrize("path", DOUBLE_BLOCK)
def test_every_part_of_a_double_block_is_image_or_text_as_in_diffusers(path):
    layer, third = DOUBLE_BLOCK[path]

    target = parse_target(f"transformer_blocks.6.{path}")

    assert target == Target(f"double_blocks.6.{layer}", WHOLE if third is None else Rows((third,), 3))
