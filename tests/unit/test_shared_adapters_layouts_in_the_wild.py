"""Every layout that other trainers write updates the same layers, at full size, at the strength of its trainer."""

import json

import pytest

from shared.adapters.base_model import stated_base
from shared.adapters.base_sizes import linear_layers
from shared.adapters.header_json import Header
from shared.adapters.layout import check_fits_base, parse_layout
from shared.adapters.peft_folder import read_peft_config
from shared.errors import AdapterMismatch, AdapterRefused
from shared.layer_names import WHOLE, Rows
from shared.safetensors_header import TensorInfo

MODELS = ["flux2", "flux2_klein_4b", "flux2_klein_9b"]
RANK = 16

# Layers of one double and one single block that every layout can name.
BFL = ["double_blocks.0.img_attn.qkv", "double_blocks.4.txt_mlp.0", "single_blocks.19.linear1"]
DIFFUSERS = [
    ("transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj"),
    ("transformer_blocks.4.ff_context.linear_in", "double_blocks.4.txt_mlp.0"),
    ("single_transformer_blocks.19.attn.to_qkv_mlp_proj", "single_blocks.19.linear1"),
]
AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")


def header_of(shapes, **metadata):
    # Nothing here reads data, so the offsets do not matter.
    return Header({key: TensorInfo("BF16", shape, 0, 0) for key, shape in shapes.items()}, metadata)


def factors(module, layer_shape, suffixes=AB, *, rank=RANK):
    out, features = layer_shape
    return {f"{module}{suffixes[0]}": (rank, features), f"{module}{suffixes[1]}": (out, rank)}


LAYOUTS = {
    "ai-toolkit": ("diffusion_model.{}", AB),
    "bare": ("{}", AB),
    "comfyui checkpoint": ("model.diffusion_model.{}", AB),
    "peft": ("base_model.model.{}", AB),
    "nested peft": ("transformer.base_model.model.{}", AB),
    "adapter name": ("transformer.{}", (".lora_A.default.weight", ".lora_B.default.weight")),
    "old diffusers": ("transformer.{}", (".lora.down.weight", ".lora.up.weight")),
    "onetrainer": ("transformer.{}", DOWN_UP),
}
UNDERSCORED = {"kohya": ("lora_unet_{}", DOWN_UP), "lycoris": ("lycoris_{}", DOWN_UP)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", [*LAYOUTS, *UNDERSCORED])
@pytest.mark.parametrize("names", ["bfl", "diffusers"])
def test_a_layout_updates_the_layers_that_it_names(names, layout, model):
    pattern, suffixes = (LAYOUTS | UNDERSCORED)[layout]
    layers = linear_layers(model)
    named = [(name, name) for name in BFL] if names == "bfl" else DIFFUSERS
    shapes = {}
    for name, layer in named:
        module = pattern.format(name.replace(".", "_") if layout in UNDERSCORED else name)
        shapes |= factors(module, layers[layer], suffixes)

    parsed = parse_layout(header_of(shapes))
    check_fits_base(parsed, layers, model=model)

    assert [(update.layer, update.rows) for update in parsed.updates] == [(layer, WHOLE) for _, layer in named]
    assert {(update.kind, update.rank) for update in parsed.updates} == {("lora", RANK)}


@pytest.mark.parametrize("model", MODELS)
def test_the_names_of_musubis_converter_have_underscores_in_the_attention_only(model):
    layers = linear_layers(model)
    module, layer = "diffusion_model.double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv"

    parsed = parse_layout(header_of(factors(module, layers[layer])))
    check_fits_base(parsed, layers, model=model)

    assert [update.layer for update in parsed.updates] == [layer]


@pytest.mark.parametrize("model", MODELS)
def test_the_split_layers_of_onetrainer_update_their_rows(model):
    layers = linear_layers(model)
    width = layers["single_blocks.0.linear2"][0]
    shapes = {}
    for part in range(3):
        shapes |= factors(f"transformer.double_blocks.0.img_attn.qkv.{part}", (width, width), DOWN_UP)
    for part, out in enumerate((width, width, width, 6 * width)):
        shapes |= factors(f"transformer.single_blocks.0.linear1.{part}", (out, width), DOWN_UP)

    parsed = parse_layout(header_of(shapes))
    check_fits_base(parsed, layers, model=model)

    assert [update.rows for update in parsed.updates] == [
        *(Rows((part,), 3) for part in range(3)),
        *(Rows((part,), 9) for part in range(3)),
        Rows(tuple(range(3, 9)), 9),
    ]


PROJ, PROJ_BFL = "transformer.transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj"


def strength_of(shapes, **metadata):
    return [update.strength.scale for update in parse_layout(header_of(shapes, **metadata)).updates]


def config(**entries):
    return json.dumps({f"transformer.{key}": value for key, value in entries.items()})


def proj(index=0, *, rank=RANK):
    return factors(f"transformer.transformer_blocks.{index}.attn.to_out.0", (3072, 3072), rank=rank)


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": "8"}, 0.5),
        ({"lora_alpha": "32.0"}, 2.0),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=32)}, 2.0),
        ({"lora_adapter_metadata": json.dumps({"r": 16, "lora_alpha": 4})}, 0.25),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, use_rslora=True)}, 2.0),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, use_rslora=False)}, 0.5),
        ({"lora_adapter_metadata": config(r=4, lora_alpha=4, rank_pattern={"attn.to_out.0": 16})}, 0.25),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=4, alpha_pattern={"to_out.0": 16})}, 1.0),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=4, alpha_pattern={r"^.*\.to_out\.\d": 16})}, 1.0),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=4, alpha_pattern={"out.0": 16, "to_out.0": 4})}, 0.25),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8), "lora_alpha": "8"}, 0.5),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, init_lora_weights=True)}, 0.5),
        *(
            ({"lora_adapter_metadata": config(r=16, lora_alpha=8, init_lora_weights=method)}, 0.5)
            for method in (None, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica", "default")
        ),
        # Methods of PEFT that change only the training.
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, velora_config={"a": 1}, use_qalora=False)}, 0.5),
        # kohya's entries are informational: converters leave them behind.
        ({"ss_network_alpha": "1", "ss_network_dim": "16"}, 1.0),
        ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 1.0),
    ],
)
def test_the_scale_is_alpha_by_rank_wherever_alpha_stands(metadata, scale):
    assert strength_of(proj(), **metadata) == [scale]


def test_a_pattern_changes_the_layers_that_it_names_only():
    text = config(r=16, lora_alpha=16, alpha_pattern={"transformer_blocks.1.attn.to_out.0": 4})

    assert strength_of(proj(0) | proj(1) | proj(11), lora_adapter_metadata=text) == [1.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"lora_alpha": "8", "lora_adapter_metadata": config(r=16, lora_alpha=16)}, "gives the scale 1, but .* 0.5"),
        ({"lora_adapter_metadata": config(r=8, lora_alpha=8)}, "has rank 16, but lora_adapter_metadata says 8"),
        ({"lora_adapter_metadata": config(r=16)}, "states the rank, but no lora_alpha, so the strength is unknown"),
        (
            # Black Forest Labs' name of the layer, and the end of a name inside of a word.
            {"lora_adapter_metadata": config(r=16, lora_alpha=4, alpha_pattern={"img_attn.proj": 8, "out.0": 8})},
            "names none of the file's layers, such as 'transformer_blocks.0.attn.to_out.0'",
        ),
        ({"lora_alpha": "many"}, "lora_alpha 'many', which is not a number"),
        ({"lora_alpha": "nan"}, "is 'nan', not a finite number"),
        ({"lora_adapter_metadata": "{"}, "is not valid JSON"),
        ({"lora_adapter_metadata": "[" * 100_000}, "is not valid JSON"),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=True)}, "is 'True', not a finite number"),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, use_dora=True)}, "no layer has a magnitude"),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, alpha_pattern={"(a+)+b": 1})}, "is not supported"),
        ({"lora_adapter_metadata": config(r=16, lora_alpha=8, alpha_pattern={"(": 1})}, "no regular expression"),
    ],
)
def test_sources_of_alpha_that_contradict_or_cannot_be_read_are_refused(metadata, reason):
    with pytest.raises(AdapterRefused, match=reason):
        parse_layout(header_of(proj(), **metadata))


@pytest.mark.parametrize("metadata", [{}, {"lora_alpha": "16"}])
def test_a_config_next_to_the_file_that_changes_nothing_is_accepted(metadata):
    layout = parse_layout(header_of(proj(), **metadata), config=json.dumps({"r": 16, "lora_alpha": 16}))

    assert [update.strength.scale for update in layout.updates] == [1.0]


def test_a_config_next_to_the_file_that_the_header_repeats_is_accepted():
    layout = parse_layout(header_of(proj(), lora_alpha="8"), config=json.dumps({"r": 16, "lora_alpha": 8}))

    assert [update.strength.scale for update in layout.updates] == [0.5]


def test_a_config_next_to_the_file_gives_its_strength():
    layout = parse_layout(header_of(proj()), config=json.dumps({"r": 16, "lora_alpha": 32}))

    assert (layout.scale_range, layout.scale_sources) == ((2.0, 2.0), ("adapter_config.json",))


def test_a_config_next_to_the_file_that_contradicts_the_header_is_refused():
    with pytest.raises(AdapterRefused, match=r"lora_alpha gives the scale 0.5, but adapter_config.json gives 2"):
        parse_layout(header_of(proj(), lora_alpha="8"), config=json.dumps({"r": 16, "lora_alpha": 32}))


@pytest.mark.parametrize(("name", "found"), [("adapter_model.safetensors", "{}"), ("other.safetensors", None)])
def test_only_the_config_of_pefts_own_file_is_read(tmp_path, name, found):
    (tmp_path / "adapter_config.json").write_text("{}")

    assert read_peft_config(tmp_path / name) == found


@pytest.mark.parametrize("data", [b"\xff", b" " * (1024**2 + 1)])
def test_a_config_that_is_too_large_or_no_text_is_refused(tmp_path, data):
    (tmp_path / "adapter_config.json").write_bytes(data)

    with pytest.raises(AdapterRefused, match=r"adapter_config.json .*; export the adapter again"):
        read_peft_config(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spelling", "models"),
    [
        ("flux2", ("flux2",)),
        ("flux_2_dev", ("flux2",)),
        ("flux2_dev", ("flux2",)),
        ("flux_2_klein_4b", ("flux2_klein_4b",)),
        ("flux_2_klein_9b", ("flux2_klein_9b",)),
        ("FLUX.2-klein-base-9B", ("flux2_klein_9b",)),
        ("flux_2_klein_9b_distilled", ("flux2_klein_9b_distilled",)),
        ("wan", ()),
    ],
)
def test_known_spellings_of_a_base_model_count_as_equal(spelling, models):
    assert stated_base({"ss_base_model_version": spelling}).models == models


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("flux-2-klein-4b.safetensors", "flux2_klein_4b_distilled"),
        ("flux-2-klein-base-4b.safetensors", "flux2_klein_4b"),
        # A renamed copy says nothing, nor does a file that contradicts the version.
        ("model.safetensors", "flux2_klein_4b"),
        ("flux-2-klein-9b.safetensors", "flux2_klein_4b"),
    ],
)
def test_a_distilled_model_is_known_by_the_file_that_musubi_tuner_names(file, model):
    # The trainer writes this version for both.
    assert stated_base({"ss_base_model_version": "flux_2_klein_4b", "ss_sd_model_name": file}).models == (model,)


def test_an_adapter_of_a_distilled_model_is_refused_for_the_base_model():
    metadata = {"ss_base_model_version": "flux_2_klein_4b", "ss_sd_model_name": "flux-2-klein-4b.safetensors"}
    layout = parse_layout(header_of(proj(), **metadata))

    check_fits_base(layout, linear_layers("flux2_klein_4b"), model="flux2_klein_4b_distilled")
    with pytest.raises(AdapterRefused, match=r"trained on 'flux-2-klein-4b.safetensors' \(ss_sd_model_name\), not on"):
        check_fits_base(layout, linear_layers("flux2_klein_4b"), model="flux2_klein_4b")


@pytest.mark.parametrize("key", ["ss_base_model_version", "modelspec.architecture"])
def test_a_file_for_another_base_is_refused_with_the_bases_name(key):
    layout = parse_layout(header_of(proj(), **{key: "flux-2-klein-9b/lora"}))

    with pytest.raises(AdapterRefused, match=rf"trained on 'flux-2-klein-9b/lora' \({key}\), not on 'flux2_klein_4b'"):
        check_fits_base(layout, linear_layers("flux2_klein_4b"), model="flux2_klein_4b")


def test_a_file_of_flux1_is_refused_as_flux1():
    layout = parse_layout(header_of(proj(), ss_base_model_version="flux1"))

    with pytest.raises(AdapterRefused, match=r"that is FLUX\.1, and only FLUX\.2 runs here"):
        check_fits_base(layout, linear_layers("flux2"), model="flux2")


def test_an_adapter_of_another_size_names_both_models():
    shapes = factors(PROJ, linear_layers("flux2_klein_4b")[PROJ_BFL])

    with pytest.raises(AdapterMismatch, match=r"fits .*\(flux2_klein_4b\), not .*\(flux2_klein_9b\)"):
        check_fits_base(parse_layout(header_of(shapes)), linear_layers("flux2_klein_9b"), model="flux2_klein_9b")


def test_two_adapters_in_one_file_are_refused():
    shapes = proj() | factors(
        PROJ.replace("blocks.0", "blocks.1"), (3072, 3072), (".lora_A.b.weight", ".lora_B.b.weight")
    )

    with pytest.raises(AdapterRefused, match="belong to two adapters; save each adapter to its own file"):
        parse_layout(header_of(shapes))


MAGNITUDES = [
    "magnitude",
    "dora_scale",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector.{}",
    "lora_magnitude_vector.{}.weight",
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["default", "my_name", "style-2"])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_the_magnitudes_of_an_adapter_with_a_name_may_leave_the_name_out(magnitude, name, model):
    layers = linear_layers(model)
    out, features = layers[PROJ_BFL]
    halves = (f".lora_A.{name}.weight", f".lora_B.{name}.weight")
    shapes = factors(f"base_model.model.{PROJ_BFL}", (out, features), halves)

    layout = parse_layout(header_of(shapes | {f"base_model.model.{PROJ_BFL}.{magnitude.format(name)}": (out,)}))
    check_fits_base(layout, layers, model=model)

    assert [(update.kind, update.rank) for update in layout.updates] == [("dora", RANK)]


def test_the_factors_of_a_loha_may_have_an_adapters_name():
    out = {f"{PROJ}.hada_w{number}_a.me": (3072, 4) for number in (1, 2)}
    inner = {f"{PROJ}.hada_w{number}_b.me": (4, 3072) for number in (1, 2)}

    assert parse_layout(header_of(out | inner)).kind == "loha"


@pytest.mark.parametrize("second", [PROJ, PROJ.replace("blocks.0", "blocks.1")])
@pytest.mark.parametrize("names", [("a", "b"), ("", "b"), ("a", "")])
def test_the_factors_of_two_adapters_are_refused_as_two_adapters(names, second):
    pairs = [tuple(f".lora_{half}.{name}.weight".replace("..", ".") for half in "AB") for name in names]
    shapes = factors(PROJ, (3072, 3072), pairs[0]) | factors(second, (3072, 3072), pairs[1])

    with pytest.raises(AdapterRefused, match="belong to two adapters; save each adapter to its own file"):
        parse_layout(header_of(shapes))


def test_a_text_encoder_is_named_with_the_number_of_its_tensors():
    text = {f"text_encoders.qwen3_8b.transformer.layers.{index}.q.lora_A.weight": (4, 4) for index in range(6)}

    with pytest.raises(AdapterRefused, match="is a text-encoder tensor, one of 6 such tensors in the file; adapters"):
        parse_layout(header_of(proj() | text))
