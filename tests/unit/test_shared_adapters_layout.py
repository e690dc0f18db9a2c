"""A file updates layers in six kinds, under several names; any other tensor is refused by its key."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.adapters.header import read_header
from shared.adapters.header_json import Header
from shared.adapters.layout import AdapterLayout, LayerUpdate, check_fits_base, parse_layout
from shared.adapters.strength import Strength
from shared.adapters.suffixes import ROLES
from shared.errors import AdapterMismatch, AdapterRefused
from shared.safetensors_header import DTYPE_BITS, TensorInfo

QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
PROJ = "diffusion_model.double_blocks.0.img_attn.proj"
LINEAR1 = "diffusion_model.single_blocks.1.linear1"

# The tiny dev model of the goldens, width 64.
LAYERS = {
    "double_blocks.0.img_attn.qkv": (192, 64),
    "double_blocks.0.img_attn.proj": (64, 64),
    "single_blocks.1.linear1": (576, 64),
}


def header_of(shapes, *, dtype="BF16", metadata=None):
    tensors, position = {}, 0
    for key, shape in shapes.items():
        size = DTYPE_BITS[dtype] // 8
        for length in shape:
            size *= length
        tensors[key] = TensorInfo(dtype, shape, position, position + size)
        position += size
    return Header(tensors, metadata or {})


def lora(layer, out, features, rank):
    return {f"{layer}.lora_A.weight": (rank, features), f"{layer}.lora_B.weight": (out, rank)}


def loha(layer, out, features, rank, **changed):
    shapes = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, features)}
    shapes |= {"hada_w2_a": (out, rank), "hada_w2_b": (rank, features)}
    return {f"{layer}.{role}": shape for role, shape in (shapes | changed).items()}


def lokr(layer, **factors):
    return {f"{layer}.lokr_{name}": shape for name, shape in factors.items()}


def test_each_layer_has_its_own_shape_rank_and_keys():
    header = header_of({**lora(QKV, 192, 64, 4), f"{QKV}.alpha": (), **lora(PROJ, 64, 64, 8)}, metadata={"name": "me"})

    layout = parse_layout(header)

    assert layout == AdapterLayout(
        kind="lora",
        updates=(
            LayerUpdate(
                layer="double_blocks.0.img_attn.qkv",
                kind="lora",
                tensors={
                    "down": f"{QKV}.lora_A.weight",
                    "up": f"{QKV}.lora_B.weight",
                    "alpha": f"{QKV}.alpha",
                },
                shape=(192, 64),
                rank=4,
                strength=Strength(None, "tensor"),
            ),
            LayerUpdate(
                layer="double_blocks.0.img_attn.proj",
                kind="lora",
                tensors={"down": f"{PROJ}.lora_A.weight", "up": f"{PROJ}.lora_B.weight"},
                shape=(64, 64),
                rank=8,
            ),
        ),
        metadata={"name": "me"},
    )


@pytest.mark.parametrize(
    "layer",
    [
        "double_blocks.7.txt_attn.proj",
        "double_blocks.12.img_mlp.0",
        "double_blocks.0.txt_mlp.2",
        "single_blocks.47.linear2",
        "img_in",
        "txt_in",
        "time_in.in_layer",
        "guidance_in.out_layer",
        "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.lin",
        "single_stream_modulation.lin",
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ],
)
def test_every_linear_layer_of_flux2_can_be_updated(layer):
    layout = parse_layout(header_of(lora(f"diffusion_model.{layer}", 64, 64, 2)))

    assert [update.layer for update in layout.updates] == [layer]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{QKV}.lokr_t2", "is a tensor in Tucker form, for convolutions; only LoRA, DoRA, LoKr, LoHa"),
        (f"{QKV}.oft_blocks", "is a LyCORIS tensor; only LoRA, DoRA, LoKr, LoHa"),
        (f"{QKV}.hada_t1", "is a tensor in Tucker form, for convolutions; only LoRA, DoRA, LoKr, LoHa"),
        (f"{QKV}.diff_b", "is a change of a bias; FLUX.2's linear layers have none; export the adapter without biases"),
        (f"{QKV}.lora_B.bias", "is the bias of a LoRA; FLUX.2's linear layers have none; export the adapter without"),
        ("lora_te1_text_model_encoder.lora_up.weight", "is a text-encoder tensor, the only such tensor in the file;"),
        ("text_encoder.layers.0.q.lora_A.weight", "is a text-encoder tensor, the only such tensor in the file;"),
        ("text_encoders.qwen3_8b.transformer.layers.0.q.lora_B.weight", "is a text-encoder tensor, the only such"),
        ("bundle_emb.me.string_to_param", "is a trained embedding; prompts here use no trained embeddings; export"),
        ("emb_params", "is a trained embedding; prompts here use no trained embeddings; export the adapter without"),
        ("double_blocks.0.img_attn.qkv.weight", "is a whole weight, as in a model checkpoint; only LoRA, DoRA"),
        ("double_blocks.0.img_mod.lin.lora_A.weight", "matches no layer of FLUX.2, but FLUX.1 has it"),
        ("emb", "is not a tensor of an adapter; only LoRA, DoRA, LoKr, LoHa, full-rank and diff updates of linear"),
    ],
)
def test_any_other_tensor_is_refused_by_its_key_and_the_reason(key, what):
    header = header_of({**lora(PROJ, 64, 64, 4), key: (2, 2)})

    with pytest.raises(AdapterRefused) as refused:
        parse_layout(header)

    assert f"{key!r} {what}" in str(refused.value)


@pytest.mark.parametrize(
    "module",
    [
        "diffusion_model.blocks_x.double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.x.img_attn.qkv",
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm",
        "diffusion_model.double_blocks.0.img_mod.lin",
        "diffusion_model.single_blocks.0.modulation.lin",
        "diffusion_model.single_blocks.0.linear3",
        "diffusion_model.",
        "diffusion_model.diffusion_model.img_in",
        "transformer.transformer_blocks.0.attn.norm_q",
        "transformer.single_transformer_blocks.0.norm.linear",
        "lycoris_double_blocks_0_img_attn_k",
        "lycoris_single_transformer_blocks_0_attn_to_o",
        "lycoris_diffusion_model.img_in",
    ],
)
def test_a_layer_that_flux2_cannot_have_is_refused_by_its_key(module):
    with pytest.raises(AdapterRefused, match=f"'{module}.lora_A.weight' matches no layer of FLUX.2"):
        parse_layout(header_of(lora(module, 64, 64, 4)))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, "holds no tensors, so it matches no layer"),
        ({f"{QKV}.lora_B.weight": (192, 4)}, "qkv.lora_B.weight' is a lora_B without its lora_A"),
        (
            {f"{QKV}.lora_A.weight": (192, 64), **lora(PROJ, 64, 64, 4)},
            "qkv.lora_A.weight' is a lora_A without its lora_B, which other layers of the file have",
        ),
        ({f"{QKV}.lora_up.weight": (192, 4)}, "qkv.lora_up.weight' is a lora_up without its lora_down"),
        ({f"{QKV}.alpha": ()}, "qkv.alpha' scales nothing: its layer has no lora_A and lora_B, nor another update"),
        ({f"{QKV}.magnitude": (192,)}, "qkv.magnitude' is a DoRA magnitude without its LoRA"),
        ({f"{QKV}.lora_A.weight": (4, 64), f"{QKV}.magnitude": (192,)}, "is a lora_A without its lora_B"),
        ({f"{QKV}.lora_B.weight": (192, 4), f"{QKV}.magnitude": (192,)}, "is a lora_B without its lora_A"),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.magnitude": (64,)}, r"magnitude' has shape \[64\], not one number for each"),
        (
            {**lora(QKV, 192, 64, 4), f"{QKV}.dora_scale": (1, 192)},
            r"dora_scale' has shape \[1, 192\], not one number for each of 192 rows or 64 columns",
        ),
        (
            {**lora(QKV, 192, 64, 4), f"{QKV}.lora_magnitude_vector": (1, 64)},
            r"vector' has shape \[1, 64\], not one number for each of 192 rows$",
        ),
        ({**lokr(QKV, w1=(8, 8), w2=(24, 8)), f"{QKV}.dora_scale": (64, 1)}, r"has shape \[64, 1\], not one number"),
        ({f"{QKV}.diff": (192, 64), f"{QKV}.dora_scale": (192, 1)}, "dora_scale' is a DoRA magnitude without its LoRA"),
        (loha(QKV, 192, 64, 4, hada_w2_b=(8, 64)), "hada_w1_a': the LoHa's four factors do not fit each other"),
        (loha(QKV, 192, 64, 4, hada_w2_a=(96, 4)), "hada_w1_a': the LoHa's four factors do not fit each other"),
        ({f"{QKV}.hada_w1_a": (192, 4)}, "hada_w1_a': its layer has no hada_w1_b; a LoHa has hada_w1_a, hada_w1_b"),
        ({f"{QKV}.diff": (192, 64), f"{QKV}.alpha": ()}, "qkv.diff' has no rank, so '.*alpha' scales nothing"),
        ({f"{QKV}.diff": (192, 0)}, r"qkv.diff' has shape \[192, 0\]"),
        (lokr(QKV, w1=(8, 8)), "lokr_w1': its layer has no lokr_w2; it takes lokr_w2, or lokr_w2_a and lokr_w2_b"),
        (lokr(QKV, w2=(8, 8)), "lokr_w2': its layer has no lokr_w1"),
        (lokr(QKV, w1=(8, 8), w2_a=(24, 3)), "lokr_w2_a': its layer has lokr_w2_a; it takes"),
        (lokr(QKV, w1_b=(3, 8), w2=(24, 8)), "lokr_w1_b': its layer has lokr_w1_b; it takes"),
        (lokr(QKV, w1=(8, 8), w2=(24, 8), w2_a=(24, 3)), "lokr_w2': its layer has lokr_w2, lokr_w2_a; it takes"),
        (lokr(QKV, w1=(8, 8), w2_a=(24, 3), w2_b=(4, 8)), "ranks 3 and 4 differ"),
        (
            lokr(QKV, w1_a=(8, 2), w1_b=(2, 8), w2_a=(24, 3), w2_b=(3, 8)),
            "lokr_w1_b' has rank 2 and '.*lokr_w2_b' has rank 3, but a LoKr has one rank",
        ),
        (lokr(QKV, w1=(8, 8), w2=(24, 8, 1, 1)), r"lokr_w2' has shape \[24, 8, 1, 1\]"),
        (lokr(QKV, w1=(1, 1), w2_a=(192, 20_000), w2_b=(20_000, 64)), "rank 20000, and the limit is 16384"),
        ({**lora(QKV, 192, 64, 4), **lokr(QKV, w1=(8, 8))}, "lora_A.weight' and '.*lokr_w1' are of two kinds"),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.diff": (192, 64)}, "lora_A.weight' and '.*diff' are of two kinds"),
        (
            {**lora(QKV, 192, 64, 4), f"{QKV}.lora_down.weight": (4, 64)},
            "lora_A.weight' and '.*lora_down.weight' are the same tensor of one layer under two names",
        ),
        ({f"{QKV}.lora_A.weight": (4, 64), f"{QKV}.alpha": ()}, "without its lora_B"),
        ({f"{QKV}.lora_A.weight": (4, 64), f"{QKV}.lora_B.weight": (192, 5)}, "ranks 5 and 4 differ"),
        (lora(QKV, 192, 64, 0), r"lora_A.weight' has shape \[0, 64\]"),
        (lora(QKV, 0, 64, 4), r"lora_B.weight' has shape \[0, 4\]"),
        ({f"{QKV}.lora_A.weight": (4, 64, 1, 1), f"{QKV}.lora_B.weight": (192, 4)}, r"has shape \[4, 64, 1, 1\]"),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.alpha": (4,)}, r"qkv.alpha' has shape \[4\], not a single number"),
        (lora(QKV, 192, 64, 100_000), "rank 100000, and the limit is 16384"),
    ],
)
def test_an_incomplete_or_contradictory_update_is_refused_by_its_key(shapes, reason):
    with pytest.raises(AdapterRefused, match=reason):
        parse_layout(header_of(shapes))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (QKV, "double_blocks.0.img_attn.qkv"),
        (QKV, "transformer.double_blocks.0.img_attn.qkv"),
        (QKV, "transformer.transformer_blocks.0.attn.to_k"),
        ("transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_k"),
        ("diffusion_model.final_layer.adaLN_modulation.1", "transformer.norm_out.linear"),
        ("lycoris_single_blocks_1_linear1", LINEAR1),
    ],
)
def test_two_updates_of_the_same_rows_are_refused(first, second):
    with pytest.raises(AdapterRefused, match=f"'{first}.lora_A.weight' and '{second}.lora_A.weight' update the same"):
        parse_layout(header_of({**lora(first, 64, 64, 4), **lora(second, 64, 64, 4)}))


def test_a_pair_split_over_two_names_of_a_layer_is_refused():
    with pytest.raises(AdapterRefused, match="update the same rows"):
        parse_layout(header_of({f"{QKV}.lora_A.weight": (4, 64), f"{QKV.partition('.')[2]}.lora_B.weight": (192, 4)}))


def test_integers_are_not_weights():
    with pytest.raises(AdapterRefused, match=r"qkv.lora_A.weight' holds I8 values"):
        parse_layout(header_of(lora(QKV, 192, 64, 4), dtype="I8"))


@pytest.mark.parametrize(
    ("shapes", "kind", "shape", "rank"),
    [
        (lora(QKV, 192, 64, 4), "lora", (192, 64), 4),
        ({f"{QKV}.lora_down.weight": (4, 64), f"{QKV}.lora_up.weight": (192, 4)}, "lora", (192, 64), 4),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.dora_scale": (192, 1)}, "dora", (192, 64), 4),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.dora_scale": (1, 64)}, "dora", (192, 64), 4),
        ({**loha(QKV, 192, 64, 4), f"{QKV}.dora_scale": (1, 64)}, "loha", (192, 64), 4),
        ({**lokr(QKV, w1=(8, 8), w2=(24, 8)), f"{QKV}.dora_scale": (192, 1)}, "lokr", (192, 64), None),
        ({**lora(QKV, 192, 64, 4), f"{QKV}.magnitude": (192,)}, "dora", (192, 64), 4),
        ({f"{QKV}.lora_A.weight": (192, 64)}, "fullrank", (192, 64), None),
        ({f"{QKV}.diff": (192, 64)}, "diff", (192, 64), None),
        (lokr(QKV, w1=(8, 4), w2=(24, 16)), "lokr", (192, 64), None),
        (lokr(QKV, w1=(8, 4), w2_a=(24, 3), w2_b=(3, 16)), "lokr", (192, 64), 3),
        (lokr(QKV, w1_a=(8, 3), w1_b=(3, 4), w2=(24, 16)), "lokr", (192, 64), 3),
        (lokr(QKV, w1_a=(8, 3), w1_b=(3, 4), w2_a=(24, 3), w2_b=(3, 16)), "lokr", (192, 64), 3),
    ],
)
def test_the_tensors_of_a_layer_decide_the_kind(shapes, kind, shape, rank):
    layout = parse_layout(header_of(shapes))

    (update,) = layout.updates
    assert (layout.kind, update.kind, update.shape, update.rank) == (kind, kind, shape, rank)
    assert sorted(update.tensors.values()) == sorted(shapes)
    assert layout.ranks == (() if rank is None else (rank,))


def test_the_alpha_between_two_full_lokr_factors_is_ignored_and_any_other_is_used():
    full = {**lokr(QKV, w1=(8, 4), w2=(24, 16)), f"{QKV}.alpha": ()}
    low_rank = {**lokr(PROJ, w1=(8, 4), w2_a=(8, 3), w2_b=(3, 16)), f"{PROJ}.alpha": ()}

    first, second = parse_layout(header_of({**full, **low_rank})).updates

    assert first.ignored == (f"{QKV}.alpha",)
    assert "alpha" not in first.tensors
    assert second.ignored == ()
    assert second.tensors["alpha"] == f"{PROJ}.alpha"


@pytest.mark.parametrize(
    ("shapes", "metadata", "sources"),
    [
        (lokr(QKV, w1=(8, 4), w2=(24, 16)), {}, ("none",)),
        ({**lokr(QKV, w1=(8, 4), w2=(24, 16)), f"{QKV}.alpha": ()}, {}, ("unused",)),
        ({f"{PROJ}.diff": (64, 64)}, {}, ("none",)),
        ({f"{PROJ}.diff": (64, 64)}, {"lora_alpha": "8"}, ("unused",)),
        ({f"{PROJ}.lora_A.weight": (64, 64)}, {"lora_alpha": "8"}, ("unused",)),
    ],
)
def test_a_kind_without_a_rank_has_scale_1_and_says_whether_an_alpha_is_stored(shapes, metadata, sources):
    layout = parse_layout(header_of(shapes, metadata=metadata))

    assert (layout.scale_range, layout.scale_sources) == ((1.0, 1.0), sources)


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_an_alpha_that_is_not_finite_is_refused(alpha):
    shapes = {**lora(PROJ, 64, 64, 4), f"{PROJ}.alpha": ()}

    with pytest.raises(AdapterRefused, match=rf"{re.escape(PROJ)}.* is {alpha}, which is not finite; the file is dam"):
        parse_layout(header_of(shapes), alphas={f"{PROJ}.alpha": alpha})


def test_a_file_may_mix_kinds_by_layer():
    shapes = {**lora(QKV, 192, 64, 4), f"{PROJ}.diff": (64, 64), **lokr(LINEAR1, w1=(8, 8), w2=(72, 8))}

    layout = parse_layout(header_of(shapes))

    assert layout.kind == "diff+lokr+lora"
    assert layout.ranks == (4,)


MODULES = [
    QKV,
    "transformer.transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_k",
    "lycoris_double_blocks_0_img_attn_proj",
    "transformer.norm_out.linear",
    "text_encoder.layers.0.q",
]
SIZES = st.sampled_from([2, 4, 8])
TENSORS = st.dictionaries(
    st.tuples(st.sampled_from(MODULES), st.sampled_from([*ROLES, ".diff_b", ".lokr_t2", ".weight"])).map("".join),
    st.one_of(st.just(()), st.tuples(SIZES), st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES), st.just((0, 4))),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(TENSORS)
def test_whatever_a_file_holds_every_tensor_is_used_or_the_file_is_refused(shapes):
    try:
        layout = parse_layout(header_of(shapes))
    except AdapterRefused:
        return

    used = [key for update in layout.updates for key in (*update.tensors.values(), *update.ignored)]
    assert sorted(used) == sorted(shapes)


def fits(shapes, *, layers=LAYERS, metadata=None):
    check_fits_base(parse_layout(header_of(shapes, metadata=metadata)), layers, model="flux2")


def test_an_adapter_may_update_some_of_the_layers():
    fits(lora(QKV, 192, 64, 4))
    fits({**lora(QKV, 192, 64, 4), **lora(LINEAR1, 576, 64, 2)}, metadata={"ss_base_model_version": "flux2"})


def test_an_adapter_that_matches_no_layer_is_refused():
    with pytest.raises(
        AdapterRefused, match=r"matches no layer of flux2; the first key is '.*single_blocks.40.linear1"
    ):
        fits(lora("diffusion_model.single_blocks.40.linear1", 576, 64, 2))


def test_an_adapter_with_a_missing_layer_is_refused_with_their_number():
    with pytest.raises(AdapterRefused, match=r"single_blocks.40.linear1.lora_A.weight' .* 1 of the adapter's 2 layers"):
        fits({**lora(QKV, 192, 64, 4), **lora("diffusion_model.single_blocks.40.linear1", 576, 64, 2)})


def test_an_update_of_another_shape_names_the_layer_and_both_shapes():
    with pytest.raises(AdapterMismatch, match=r"qkv: expected a \(192, 64\) update, the adapter gives \(192, 56\)"):
        fits(lora(QKV, 192, 56, 3))


def test_a_lone_lora_a_is_a_full_rank_update_or_half_a_lora():
    fits({f"{QKV}.lora_A.weight": (192, 64)})

    with pytest.raises(AdapterRefused, match=r"qkv.lora_A.weight' is a lora_A without its lora_B; by itself"):
        fits({f"{QKV}.lora_A.weight": (4, 64)})


@pytest.mark.parametrize(
    ("shapes", "got"),
    [
        (lokr(QKV, w1=(8, 8), w2=(24, 4)), (192, 32)),
        (lokr(QKV, w1=(4, 8), w2_a=(24, 2), w2_b=(2, 8)), (96, 64)),
        ({f"{QKV}.diff": (64, 192)}, (64, 192)),
    ],
)
def test_kronecker_products_and_differences_must_have_the_layers_shape(shapes, got):
    with pytest.raises(AdapterMismatch, match=re.escape(f"qkv: expected a (192, 64) update, the adapter gives {got}")):
        fits(shapes)


def test_an_update_of_one_diffusers_parameter_must_fit_its_third_of_qkv():
    fits(lora("transformer.transformer_blocks.0.attn.to_v", 64, 64, 4))

    with pytest.raises(AdapterMismatch, match=r"qkv: expected a \(64, 64\) update, the adapter gives \(192, 64\)"):
        fits(lora("transformer.transformer_blocks.0.attn.to_v", 192, 64, 4))


def test_an_adapter_of_another_base_model_is_refused_before_its_layers_are_compared():
    with pytest.raises(AdapterRefused, match=r"trained on 'flux2_klein_9b' .* not on 'flux2'"):
        fits(lora("diffusion_model.img_in", 64, 128, 4), metadata={"ss_base_model_version": "flux2_klein_9b"})


@pytest.mark.parametrize("metadata", [{}, {"ss_base_model_version": "flux2"}, {"ss_base_model_version": ""}])
def test_an_adapter_that_names_this_base_or_none_passes(metadata):
    check_fits_base(parse_layout(header_of(lora(QKV, 192, 64, 4), metadata=metadata)), None, model="flux2")


# Every adapter of the goldens: its kinds, its ranks and its count of layers, or what its refusal says.

OUTCOMES = {
    "adapters/lora_r4_bf16": ("lora", (4,), 20),
    "adapters/lora_r8_alpha1cfg_fp16": ("lora", (8,), 20),
    "adapters/lora_mixedrank_bf16": ("lora", (2, 4, 6, 8), 20),
    "adapters/lora_alllinear_bf16": ("lora", (4,), 31),
    "adapters/lora_subset_bf16": ("lora", (4,), 10),
    "adapters/dora_bf16": ("dora", (4,), 20),
    "adapters/fullrank_bf16": ("fullrank", (), 2),
    "adapters/lokr_full_bf16": ("lokr", (), 20),
    "adapters/lokr_full_f4_fp16": ("lokr", (), 20),
    "adapters/lokr_lowrank_bf16": ("lokr", (2,), 20),
    "adapters/lokr_old_lycoris_bf16": ("lokr", (2,), 20),
    "adapters/lora_plus_diff_bf16": ("diff+lora", (4,), 8),
    "adapters_hand/AB_alpha_mixedrank": ("lora", (2, 3, 4, 5, 6), 5),
    "adapters_hand/nonfinite": ("lora", (3,), 1),
    "adapters_hand/shape_mismatch": ("lora", (3,), 1),
    "adapters_hand/missing_B": "img_attn.qkv.lora_A.weight' is a lora_A without its lora_B",
    "adapters_hand/bare_prefix_AB": ("lora", (2, 3, 4, 5, 6), 5),
    # to_q, to_k and to_v are one layer.
    "adapters_hand/diffusers_names_AB": ("lora", (3, 4), 3),
    "adapters_hand/transformer_prefix_AB": ("lora", (2, 3, 4, 5, 6), 5),
    "adapters_hand/downup_alpha_mixedrank": ("lora", (2, 3, 4, 5, 6), 5),
    "adapters_hand/empty_text_only": "text_encoder.layers.0.q.lora_A.weight' is a text-encoder tensor",
    "adapters_hand/lokr_lowrank_no_alpha": ("lokr", (3, 6), 2),
    "adapters_hand/lokr_w1ab_w2ab_alpha": ("lokr", (3, 4, 6), 3),
    "adapters_hand/partly_unmatched": ("lora", (3, 6), 3),
    "adapters_hand/wild_dora_magnitude_vector": ("dora", (4,), 20),
    "adapters_hand/wild_kohya_lora_unet": ("lora", (4,), 20),
    "adapters_hand/wild_loha": ("loha", (2, 4), 4),
    "adapters_hand/wild_metadata_lora_adapter": ("lora", (4,), 10),
    "adapters_hand/wild_peft_base_model": ("lora", (4,), 10),
    "adapters_hand/wholly_unmatched": "blocks_x.double_blocks.0.img_attn.proj.lora_A.weight' matches no layer",
}


def outcome_of(path):
    try:
        layout = parse_layout(read_header(path, max_bytes=1 << 20))
    except AdapterRefused as error:
        return str(error)
    return layout.kind, layout.ranks, len(layout.layers)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_golden_adapter_is_accepted_or_refused_as_expected(goldens, name):
    expected = OUTCOMES[name]

    outcome = outcome_of(goldens / f"{name}.safetensors")

    assert expected in outcome if isinstance(expected, str) else outcome == expected


def test_no_golden_adapter_is_forgotten(goldens):
    found = {f"{path.parent.name}/{path.stem}" for path in goldens.glob("adapters*/*.safetensors")}

    assert found == set(OUTCOMES)


MISFITS = {
    "adapters_hand/shape_mismatch": r"qkv: expected a \(192, 64\) update, the adapter gives \(192, 56\)",
    "adapters_hand/partly_unmatched": r"double_blocks.97.img_attn.qkv.lora_A.weight' .* 1 of the adapter's 3 layers",
}


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if not isinstance(outcome, str)])
def test_an_accepted_golden_is_compared_with_the_model_that_it_was_made_for(goldens, name):
    base = read_header(goldens / "weights/flux2_dev_tiny.safetensors", max_bytes=1 << 30).tensors
    layers = {key.removesuffix(".weight"): info.shape for key, info in base.items() if len(info.shape) == 2}
    layout = parse_layout(read_header(goldens / f"{name}.safetensors", max_bytes=1 << 20))

    if name in MISFITS:
        with pytest.raises(AdapterRefused, match=MISFITS[name]):
            check_fits_base(layout, layers, model="flux2")
    else:
        check_fits_base(layout, layers, model="flux2")


@pytest.mark.parametrize("suffix", [suffix for suffix, role in ROLES.items() if role in ("down", "up")])
def test_half_a_lora_is_refused_in_every_spelling(suffix):
    pair = {f"{QKV}{other}": (4, 64) for other in (".lora_A.weight", ".lora_B.weight")}
    half = f"double_blocks.0.img_attn.proj{suffix}"

    with pytest.raises(AdapterRefused, match=rf"proj{suffix}' is a \S+ without its \S+"):
        parse_layout(header_of({**pair, f"{QKV}.lora_B.weight": (192, 4), half: (4, 64)}))
