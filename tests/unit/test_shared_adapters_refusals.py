"""A file that cannot be used is refused for its real reason, with what to do, at the sizes of the published models."""

import json
import re

import pytest

from shared.adapters.base_sizes import linear_layers
from shared.adapters.header_json import Header
from shared.adapters.layout import check_fits_base, parse_layout
from shared.errors import AdapterRefused
from shared.safetensors_header import TensorInfo

MODELS = ["flux2", "flux2_klein_4b", "flux2_klein_9b"]
AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
# The width of FLUX.1, and of klein 4B.
W = 3072


def factors(module, shape, suffixes=AB, *, rank=16):
    return {f"{module}{suffixes[0]}": (rank, shape[1]), f"{module}{suffixes[1]}": (shape[0], rank)}


def whole_file(model):
    """Return the tensors of a LoRA for every layer in the blocks."""
    shapes = {}
    for layer, shape in linear_layers(model).items():
        if "blocks." in layer:
            shapes |= factors(f"diffusion_model.{layer}", shape)
    return shapes


def refusal(shapes, metadata=None, *, model="flux2", config=None, alphas=None):
    header = Header({key: TensorInfo("BF16", shape, 0, 0) for key, shape in shapes.items()}, metadata or {})
    layers = linear_layers(model)
    with pytest.raises(AdapterRefused) as refused:
        check_fits_base(parse_layout(header, config=config, alphas=alphas), layers, model=model)
    return str(refused.value)


CLIP = factors("lora_te1_text_model_encoder_layers_0_mlp_fc1", (3072, 768), DOWN_UP)


def flux1(names, pattern, suffixes=AB, *, blocks=19):
    shapes = {}
    for number in range(blocks):
        for name, shape in names.items():
            shapes |= factors(pattern.format(number, name), shape, suffixes)
    return shapes


FLUX1 = {
    "kohya": flux1({"img_attn_qkv": (3 * W, W), "img_mod_lin": (6 * W, W)}, "lora_unet_double_blocks_{}_{}", DOWN_UP),
    "kohya, only in layers that FLUX.2 has": flux1(
        {"img_attn_qkv": (3 * W, W), "img_mlp_0": (4 * W, W)}, "lora_unet_double_blocks_{}_{}", DOWN_UP
    ),
    "diffusers": flux1({"attn.to_q": (W, W), "ff.net.0.proj": (4 * W, W)}, "transformer.transformer_blocks.{}.{}")
    | flux1({"proj_mlp": (4 * W, W)}, "transformer.single_transformer_blocks.{}.{}", blocks=38),
    "diffusers, only attention": flux1({"attn.to_q": (W, W)}, "transformer.transformer_blocks.{}.{}"),
    "diffusers, single blocks": flux1(
        {"attn.to_q": (W, W), "proj_mlp": (4 * W, W)}, "transformer.single_transformer_blocks.{}.{}"
    ),
    "SimpleTuner's LyCORIS": flux1({"attn_to_q": (W, W)}, "lycoris_single_transformer_blocks_{}_{}"),
    "BFL, two layers": flux1({"linear2": (W, 5 * W)}, "diffusion_model.single_blocks.{}.{}", blocks=2),
    "embedders": factors("transformer.context_embedder", (W, 4096)) | factors("transformer.x_embedder", (W, 64)),
    "XLabs": factors("double_blocks.0.processor.qkv_lora1", (3 * W, W), (".down.weight", ".up.weight")),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("text_encoder", [{}, CLIP], ids=["alone", "with a text encoder"])
@pytest.mark.parametrize("kind", FLUX1)
def test_a_file_of_flux1_is_refused_as_flux1_whatever_else_it_holds(kind, text_encoder, model):
    # Text encoders come first in kohya's files.
    message = refusal(text_encoder | FLUX1[kind], model=model)

    assert "the adapter was made for FLUX.1, and only FLUX.2 runs here; train the adapter on a FLUX.2 model" in message
    assert "text-encoder" not in message


@pytest.mark.parametrize(
    ("spelling", "name"), [("flux1", "FLUX.1"), ("sdxl_base_v1-0", "no FLUX.2 model"), ("wan2.2", "no FLUX.2 model")]
)
@pytest.mark.parametrize("shapes", [CLIP, CLIP | whole_file("flux2"), {"unet.conv_in.lora_A.weight": (4, 4)}])
def test_a_stated_base_of_another_family_comes_before_what_a_better_export_would_change(shapes, spelling, name):
    message = refusal(shapes, {"ss_base_model_version": spelling})

    assert f"trained on {spelling!r} (ss_base_model_version); that is {name}, and only FLUX.2 runs here" in message


def test_an_unknown_spelling_of_a_flux2_model_is_answered_with_what_to_write():
    message = refusal(whole_file("flux2"), {"ss_base_model_version": "flux2_mega"})

    assert "no model has that name here; if it means flux2, write that into the file's header" in message


OTHERS = {
    "Stable Diffusion 1.5, 2 or XL": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "Qwen-Image": "transformer.transformer_blocks.0.img_mlp.net.0.proj",
    "Wan": "diffusion_model.blocks.0.self_attn.q",
    "Z-Image or Lumina": "diffusion_model.layers.0.attention.to_q",
    "Stable Diffusion 3": "diffusion_model.joint_blocks.0.x_block.attn.qkv",
    "FLUX.1 or Stable Diffusion 3": "transformer.transformer_blocks.0.ff.net.0.proj",
    "HiDream": "diffusion_model.double_stream_blocks.0.block.attn1.to_q",
    "Chroma": "diffusion_model.distilled_guidance_layer.in_proj",
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_file_for_another_family_of_models_is_refused_with_its_name(family):
    shapes = factors(OTHERS[family], (W, W)) | factors("diffusion_model.double_blocks.0.img_attn.proj", (W, W))

    message = refusal(CLIP | shapes, model="flux2_klein_4b")

    assert f"the adapter was made for {family}, and only FLUX.2 runs here" in message
    assert "(1 other tensor is refused too)" in message


TEXT_ENCODERS = [
    "text_encoders.qwen3_8b.transformer.layers.0.q",
    "text_encoders.mistral3_24b.transformer.model.layers.0.q",
    "lora_te_layers_0_q",
    "lora_te2_text_model_encoder",
    "lycoris_te_layers_0_q",
    "text_encoder.model.layers.0.q",
    "transformer.text_encoder.layers.0.q",
    "base_model.model.text_encoder_2.layers.0.q",
    "base_model.model.model.layers.0.self_attn.q_proj",
    "qwen3_8b.transformer.layers.0.q",
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("module", TEXT_ENCODERS)
def test_text_encoder_layers_are_counted_wherever_they_stand(module, model):
    message = refusal(factors(module, (4096, 4096)) | whole_file(model), model=model)

    assert f"{module}.lora_A.weight' is a text-encoder tensor, one of 2 such tensors in the file" in message


def test_a_file_with_nothing_but_a_text_encoder_says_so():
    message = refusal(factors(TEXT_ENCODERS[0], (4096, 4096)))

    assert "the file updates no layer of the transformer, so it cannot be used here" in message


DOUBLE = "double_blocks.0.img_attn"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (
            f"diffusion_model.{DOUBLE}.norm.query_norm.diff",
            "a change of a normalisation; only linear layers can be updated; export the adapter without normalisations",
        ),
        (f"lora_unet_{DOUBLE.replace('.', '_')}_norm_query_norm.w_norm", "a change of a normalisation"),
        (f"diffusion_model.{DOUBLE}.norm.key_norm.scale", "a change of a normalisation"),
        ("vae.decoder.conv_in.lora_A.weight", "a tensor of an autoencoder; adapters change only the transformer here;"),
        (f"{DOUBLE}.qkv.weight", "a whole weight, as in a model checkpoint; .* extract a LoRA from the checkpoint"),
    ],
)
def test_other_parts_of_a_model_are_named(key, reason):
    assert re.search(rf"{re.escape(key)}' is {reason}", refusal(whole_file("flux2") | {key: (128,)}))


@pytest.mark.parametrize("model", MODELS)
def test_a_layer_behind_an_unknown_prefix_is_refused_with_the_name_to_give_it(model):
    renamed = {key.replace("diffusion_model.", "my.prefix."): shape for key, shape in whole_file(model).items()}

    message = refusal(renamed, model=model)

    assert "the prefix 'my.prefix.' is unknown; rename its keys to begin with 'diffusion_model.'" in message
    assert f"({len(renamed) - 1} other tensors are refused too)" in message


CHANGED_BASE = (
    "the adapter was trained on base weights that this method had changed; convert it to a LoRA of the original"
)
METHODS = [
    *(
        ("init_lora_weights", method, CHANGED_BASE)
        for method in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga")
    ),
    (
        "init_lora_weights",
        "loftq",
        "was trained on quantised base weights .*; train it again with init_lora_weights=True",
    ),
    (
        "init_lora_weights",
        ["pissa"],
        "which is unknown here and may have changed the base weights; train the adapter with",
    ),
    ("use_qalora", True, "is made with QA-LoRA, whose factors take averages .*; train a plain LoRA or DoRA"),
    ("use_bdlora", {"nblocks": 2}, "is made with BD-LoRA"),
    ("alora_invocation_tokens", [1], "is made with Activated LoRA"),
    ("arrow_config", {"top_k": 3}, "is made with Arrow"),
    ("kasa_config", {"beta": 1e-4}, "is made with KaSA, which changes the base weights"),
    ("layer_replication", [[0, 4]], "is made with layer_replication"),
]


@pytest.mark.parametrize("place", ["lora_adapter_metadata", "adapter_config.json"])
@pytest.mark.parametrize(("entry", "value", "reason"), METHODS)
def test_a_peft_adapter_that_is_more_than_factors_on_the_published_weights_is_refused(entry, value, reason, place):
    peft = {"r": 16, "lora_alpha": 16, "peft_type": "LORA", entry: value}
    if place == "adapter_config.json":
        message = refusal(whole_file("flux2"), config=json.dumps(peft))
    else:
        stored = json.dumps({f"transformer.{key}": value for key, value in peft.items()})
        message = refusal(whole_file("flux2"), {place: stored})

    assert re.match(f"{place} says {entry}.*: the adapter |{place} says {entry}.*, which is unknown", message)
    assert re.search(reason, message)


def test_a_peft_adapter_of_an_unknown_method_is_refused_even_without_an_alpha():
    assert CHANGED_BASE in refusal(whole_file("flux2"), config=json.dumps({"init_lora_weights": "pissa"}))


def test_alpha_tensors_that_contradict_the_folders_config_are_refused_with_both_scales():
    layer = "diffusion_model.double_blocks.0.img_attn.proj"
    shapes = factors(layer, (6144, 6144)) | {f"{layer}.alpha": ()}

    message = refusal(shapes, config=json.dumps({"r": 16, "lora_alpha": 32}), alphas={f"{layer}.alpha": 8.0})

    assert (
        "its alpha tensor gives the scale 0.5, but adapter_config.json gives 2; remove the wrong one: delete" in message
    )


@pytest.mark.parametrize("model", MODELS)
def test_updates_of_a_third_of_a_layer_are_refused_with_what_to_do_and_their_number(model):
    width = linear_layers(model)["double_blocks.0.img_attn.proj"][0]
    halves = [f"diffusion_model.double_blocks.{number}.txt_attn.qkv.lora_B.weight" for number in (0, 3)]

    message = refusal(whole_file(model) | dict.fromkeys(halves, (width, 16)), model=model)

    assert "expected a" in message
    assert message.endswith(
        "; export the adapter again, with whole layers of that size (1 other update does not fit either)"
    )
