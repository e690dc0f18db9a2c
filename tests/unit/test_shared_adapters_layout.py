"""What a file updates: standard LoRA is understood, everything else is refused by the name of its key."""

import pytest

from shared.adapters.header import DTYPE_BITS, Header, TensorInfo, read_header
from shared.adapters.layout import AdapterLayout, LayerUpdate, check_base, check_fits, describe
from shared.errors import AdapterMismatch, AdapterRefused

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


def test_each_layer_has_its_own_shape_rank_and_keys():
    header = header_of({**lora(QKV, 192, 64, 4), f"{QKV}.alpha": (), **lora(PROJ, 64, 64, 8)}, metadata={"name": "me"})

    layout = describe(header)

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
    layout = describe(header_of(lora(f"diffusion_model.{layer}", 64, 64, 2)))

    assert [update.layer for update in layout.updates] == [layer]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{QKV}.lokr_w1", "is a LoKr tensor"),
        ("lycoris_double_blocks_0_img_attn_qkv.lokr_w2_a", "is a LoKr tensor"),
        (f"{QKV}.hada_w1_a", "is a LyCORIS tensor"),
        (f"{QKV}.magnitude", "is a DoRA magnitude"),
        (f"{QKV}.dora_scale", "is a DoRA magnitude"),
        (f"{QKV}.diff", "is a full weight difference"),
        (f"{QKV}.diff_b", "is a full weight difference"),
        (f"{QKV}.lora_down.weight", "is a lora_down/lora_up tensor"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "is named in kohya's style"),
        ("lora_te1_text_model_encoder.lora_up.weight", "is a text-encoder tensor"),
        ("text_encoder.layers.0.q.lora_A.weight", "is a text-encoder tensor"),
        ("transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight", "is a tensor under another prefix"),
        ("base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight", "is a tensor under another prefix"),
        (f"{QKV}.lora_A.default.weight", "is a PEFT tensor with an adapter name"),
        ("double_blocks.0.img_attn.qkv.lora_A.weight", "is a tensor without the 'diffusion_model.' prefix"),
        ("double_blocks.0.img_attn.qkv.weight", "is a whole weight"),
        ("emb", "is not a tensor of an adapter"),
    ],
)
def test_any_other_tensor_is_refused_by_its_key_and_by_what_it_is(key, what):
    header = header_of({**lora(PROJ, 64, 64, 4), key: (2, 2)})

    with pytest.raises(AdapterRefused) as refused:
        describe(header)

    assert f"{key!r} {what}" in str(refused.value)
    assert "this version merges standard LoRA (lora_A/lora_B under 'diffusion_model.') only" in str(refused.value)


@pytest.mark.parametrize(
    "layer",
    [
        "diffusion_model.blocks_x.double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.x.img_attn.qkv",
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm",
        "diffusion_model.double_blocks.0.img_mod.lin",
        "diffusion_model.single_blocks.0.modulation.lin",
        "diffusion_model.single_blocks.0.linear3",
        "diffusion_model.",
    ],
)
def test_a_layer_that_flux2_cannot_have_is_refused_by_its_key(layer):
    with pytest.raises(AdapterRefused, match=f"'{layer}.lora_A.weight' matches no layer of FLUX.2"):
        describe(header_of(lora(layer, 64, 64, 4)))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, "holds no tensors, so it matches no layer"),
        ({f"{QKV}.lora_A.weight": (4, 64)}, "qkv.lora_A.weight' is a lora_A without its lora_B"),
        ({f"{QKV}.lora_B.weight": (192, 4)}, "qkv.lora_B.weight' is a lora_B without its lora_A"),
        ({f"{QKV}.alpha": ()}, "qkv.alpha' has no lora_A and lora_B beside it"),
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
        describe(header_of(shapes))


def test_integers_are_not_weights():
    with pytest.raises(AdapterRefused, match=r"qkv.lora_A.weight' holds I8 values"):
        describe(header_of(lora(QKV, 192, 64, 4), dtype="I8"))


def fits(shapes, *, layers=LAYERS, metadata=None):
    check_fits(describe(header_of(shapes, metadata=metadata)), layers, model="flux2")


def test_an_adapter_may_update_some_of_the_layers():
    fits(lora(QKV, 192, 64, 4))
    fits({**lora(QKV, 192, 64, 4), **lora(LINEAR1, 576, 64, 2)}, metadata={"ss_base_model_version": "flux2"})


def test_an_adapter_for_none_of_the_layers_matches_nothing():
    with pytest.raises(
        AdapterRefused, match=r"matches no layer of flux2; the first key is '.*single_blocks.40.linear1"
    ):
        fits(lora("diffusion_model.single_blocks.40.linear1", 576, 64, 2))


def test_an_adapter_with_a_layer_too_many_is_refused_and_says_how_many():
    with pytest.raises(AdapterRefused, match=r"single_blocks.40.linear1.lora_A.weight' .* 1 of the adapter's 2 layers"):
        fits({**lora(QKV, 192, 64, 4), **lora("diffusion_model.single_blocks.40.linear1", 576, 64, 2)})


def test_an_update_of_another_shape_names_the_layer_and_both_shapes():
    with pytest.raises(AdapterMismatch, match=r"qkv: expected a \(192, 64\) update, the adapter gives \(192, 56\)"):
        fits(lora(QKV, 192, 56, 3))


def test_an_adapter_of_another_base_model_is_refused_before_its_layers_are_looked_at():
    with pytest.raises(AdapterRefused, match=r"trained on 'flux2_klein_9b' .* not on 'flux2'"):
        fits(lora("diffusion_model.img_in", 64, 128, 4), metadata={"ss_base_model_version": "flux2_klein_9b"})


@pytest.mark.parametrize("metadata", [{}, {"ss_base_model_version": "flux2"}, {"ss_base_model_version": ""}])
def test_an_adapter_that_names_this_base_or_none_passes(metadata):
    check_base(describe(header_of(lora(QKV, 192, 64, 4), metadata=metadata)), model="flux2")


# Every adapter of the goldens: the ranks it holds and its count of layers, or what its refusal says.

ONLY = "this version merges standard LoRA"
OUTCOMES = {
    "adapters/lora_r4_bf16": ({4}, 20),
    "adapters/lora_r8_alpha1cfg_fp16": ({8}, 20),
    "adapters/lora_mixedrank_bf16": ({2, 4, 6, 8}, 20),
    "adapters/lora_alllinear_bf16": ({4}, 31),
    "adapters/lora_subset_bf16": ({4}, 10),
    "adapters/dora_bf16": f"magnitude' is a DoRA magnitude; {ONLY}",
    "adapters/fullrank_bf16": "single_blocks.1.linear1.lora_A.weight' is a lora_A without its lora_B",
    "adapters/lokr_full_bf16": f"lokr_w1' is a LoKr tensor; {ONLY}",
    "adapters/lokr_full_f4_fp16": f"lokr_w1' is a LoKr tensor; {ONLY}",
    "adapters/lokr_lowrank_bf16": f"lokr_w1' is a LoKr tensor; {ONLY}",
    "adapters/lokr_old_lycoris_bf16": "is named in kohya's style",
    "adapters/lora_plus_diff_bf16": f"diff' is a full weight difference; {ONLY}",
    "adapters_hand/AB_alpha_mixedrank": ({2, 3, 4, 5, 6}, 5),
    "adapters_hand/nonfinite": ({3}, 1),
    "adapters_hand/shape_mismatch": ({3}, 1),
    "adapters_hand/missing_B": "img_attn.qkv.lora_A.weight' is a lora_A without its lora_B",
    "adapters_hand/bare_prefix_AB": "img_attn.proj.lora_A.weight' is a tensor without the 'diffusion_model.' prefix",
    "adapters_hand/diffusers_names_AB": "norm_out.linear.lora_A.weight' is a tensor under another prefix",
    "adapters_hand/transformer_prefix_AB": "img_attn.proj.lora_A.weight' is a tensor under another prefix",
    "adapters_hand/downup_alpha_mixedrank": "is a lora_down/lora_up tensor",
    "adapters_hand/empty_text_only": "text_encoder.layers.0.q.lora_A.weight' is a text-encoder tensor",
    "adapters_hand/lokr_lowrank_no_alpha": f"lokr_w1' is a LoKr tensor; {ONLY}",
    "adapters_hand/lokr_w1ab_w2ab_alpha": f"lokr_w1_a' is a LoKr tensor; {ONLY}",
    "adapters_hand/partly_unmatched": ({3, 6}, 3),
    "adapters_hand/wholly_unmatched": "blocks_x.double_blocks.0.img_attn.proj.lora_A.weight' matches no layer",
}


def outcome_of(path):
    try:
        layout = describe(read_header(path, max_bytes=1 << 20))
    except AdapterRefused as error:
        return str(error)
    return {update.rank for update in layout.updates}, len(layout.updates)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_golden_adapter_is_described_or_refused_as_it_should_be(goldens, name):
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
def test_a_described_golden_is_held_to_the_model_that_it_was_made_for(goldens, name):
    base = read_header(goldens / "weights/flux2_dev_tiny.safetensors", max_bytes=1 << 30).tensors
    layers = {key.removesuffix(".weight"): info.shape for key, info in base.items() if len(info.shape) == 2}
    layout = describe(read_header(goldens / f"{name}.safetensors", max_bytes=1 << 20))

    if name in MISFITS:
        with pytest.raises(AdapterRefused, match=MISFITS[name]):
            check_fits(layout, layers, model="flux2")
    else:
        check_fits(layout, layers, model="flux2")
