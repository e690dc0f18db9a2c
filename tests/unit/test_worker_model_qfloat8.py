"""Weights in float8, compared with optimum-quanto, and adapters that run unmerged on them."""

from functools import partial

import optimum.quanto
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shared.errors import InvalidRequest
from worker.checkpoint.locate import ModuleFiles, TextEncoderFiles
from worker.model.load import load_components
from worker.model.modules import load_transformer
from worker.model.qfloat8 import FLOAT8, Float8Linear, quantize, to_float8
from worker.model.text_encoder import load_text_encoder
from worker.model.tokenizer import load_tokenizer
from worker.rendering.prompt_encoder import embed, tokenize
from worker.rendering.renderer import Renderer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def quantised(model_settings):
    """The goldens' model with everything in qfloat8, and with the text encoder alone; loaded once."""
    alone = model_settings("bf16").model_copy(update={"text_encoder_precision": "qfloat8"})
    return {
        "all": load_components(model_settings("qfloat8"), device=CPU, hf_token=None),
        "text": load_components(alone, device=CPU, hf_token=None),
    }


def quanto(model):
    """Quantise as ai-toolkit does, with its package."""
    optimum.quanto.quantize(model, weights=optimum.quanto.qfloat8)
    optimum.quanto.freeze(model)
    return model.requires_grad_(False)


def linears(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | Float8Linear)]


def ignore(progress):
    pass


def test_a_hand_worked_row_is_scaled_to_the_largest_float8():
    # float8 e4m3 reaches 448 with 3 bits after the point: 896 / 2 = 448, 2 / 2 = 1, and 4.4 / 2 = 2.2 rounds to 2.25
    values, scale = to_float8(torch.tensor([[896.0, 2.0, 4.4]]))

    assert scale.tolist() == [[2.0]]
    assert values.float().tolist() == [[448.0, 1.0, 2.25]]


def test_a_row_of_zeros_stays_zero():
    values, scale = to_float8(torch.zeros(1, 4))

    assert (scale * values.float()).tolist() == [[0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_quantos_to_the_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(96, 64, bias=True).to(dtype).requires_grad_(False)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    values, scale = to_float8(layer.weight)
    hidden_states = torch.randn(2, 5, 96, generator=generator).to(dtype)

    ours = Float8Linear(values, scale, layer.bias)(hidden_states)
    theirs = quanto(nn.Sequential(layer))

    assert torch.equal(values.float(), theirs[0].weight._data.float())
    assert torch.equal(scale, theirs[0].weight._scale)
    assert torch.equal(ours, theirs(hidden_states))


def test_each_row_is_quantised_alone_so_qkv_may_be_split():
    fused = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).bfloat16()

    values, scale = to_float8(fused)

    for part, whole_values, whole_scale in zip(fused.chunk(3), values.chunk(3), scale.chunk(3), strict=True):
        part_values, part_scale = to_float8(part)
        assert torch.equal(part_values.float(), whole_values.float())
        assert torch.equal(part_scale, whole_scale)


def test_a_quantised_transformer_equals_quantos(quantised, checkpoint, goldens):
    golden = load_file(goldens / "forward/dev_bf16.safetensors")
    source = ModuleFiles("bfl", (checkpoint / "flux2-dev.safetensors",))
    theirs = quanto(load_transformer(source, device=CPU, dtype=torch.bfloat16, fused_qkv=False))

    with torch.no_grad():
        predictions = [
            transformer(
                hidden_states=golden["x"],
                encoder_hidden_states=golden["ctx"],
                timestep=golden["timesteps"],
                img_ids=golden["x_ids"],
                txt_ids=golden["ctx_ids"],
                guidance=golden["guidance"],
                return_dict=False,
            )[0]
            for transformer in (quantised["all"].transformer, theirs)
        ]

    assert torch.equal(*predictions)
    assert not torch.equal(predictions[0], golden["pred"])


@pytest.mark.parametrize("encoder", ["mistral", "qwen"])
def test_a_quantised_text_encoder_equals_quantos(encoder, goldens):
    folder = goldens / "text" / {"mistral": "mistral_tiny", "qwen": "qwen3_tiny"}[encoder]
    load = partial(load_text_encoder, TextEncoderFiles(folder), device=CPU, dtype=torch.bfloat16, to_be_quantised=True)
    ours, theirs = load(), load()
    tokenizer = load_tokenizer(goldens / "text/mistral_processor_pad_right")
    quantize(ours, device=CPU)

    ids, mask = tokenize(tokenizer, "a red fox")
    with torch.no_grad():
        embeds = embed(ours, ids, mask)

        assert torch.equal(embeds, embed(quanto(theirs), ids, mask))


@pytest.mark.parametrize(
    ("encoder", "to_be_quantised", "dtype"),
    [
        ("mistral_tiny", False, torch.bfloat16),
        ("mistral_tiny", True, torch.bfloat16),
        ("qwen3_tiny", False, torch.bfloat16),
        ("qwen3_tiny", True, torch.float32),
    ],
)
def test_rotary_frequencies_are_rounded_where_ai_toolkit_rounds_them(encoder, to_be_quantised, dtype, goldens):
    # Its load_te casts the whole module, buffers included; the klein one only where it does not quantise.
    source = TextEncoderFiles(goldens / "text" / encoder)

    model = load_text_encoder(source, device=CPU, dtype=torch.bfloat16, to_be_quantised=to_be_quantised)

    assert model.rotary_emb.inv_freq.dtype is dtype


def test_every_linear_layer_is_in_float8_and_keeps_the_name_that_adapters_use(quantised, components):
    model = quantised["all"]

    for module in (model.transformer, model.text_encoder):
        assert {layer.weight.dtype for layer in linears(module)} == {FLOAT8}
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert model.layers == components("bf16").layers
    assert model.precision_names == "qfloat8"


def test_the_text_encoder_alone_can_be_quantised(quantised, components, item):
    model = quantised["text"]

    rendered = Renderer(model, prompt_cache=4).render(item(), [], on_progress=ignore)

    assert {layer.weight.dtype for layer in linears(model.transformer)} == {torch.bfloat16}
    assert {layer.weight.dtype for layer in linears(model.text_encoder)} == {FLOAT8}
    assert rendered.pipeline.precision == "bf16, text encoder qfloat8"
    plain = Renderer(components("bf16"), prompt_cache=4).render(item(), [], on_progress=ignore)
    assert rendered.image.tobytes() != plain.image.tobytes()


def test_embeddings_of_another_precision_are_cast_to_the_transformers(model_settings, item):
    settings = model_settings("fp32").model_copy(update={"text_encoder_precision": "bf16"})

    rendered = Renderer(load_components(settings, device=CPU, hf_token=None), prompt_cache=4).render(
        item(), [], on_progress=ignore
    )

    assert rendered.pipeline.precision == "fp32, text encoder bf16"


def test_an_unmerged_adapter_changes_the_image_and_leaves_no_trace(quantised, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    renderer = Renderer(quantised["all"], prompt_cache=4)

    def render(*multipliers):
        refs = tuple(adapter_ref(path, multiplier) for multiplier in multipliers)
        return renderer.render(item(adapters=refs), [path] * len(refs), on_progress=ignore)

    runs = [render(), render(1.0), render(0.5), render(0.5, 0.5), render(0.0), render()]

    base, *changed, nothing, again = (run.image.tobytes() for run in runs)
    assert len({base, *changed}) == 4
    assert nothing == again == base
    assert [run.pipeline.change for run in runs] == ["none", "merged", "swapped", "swapped", "restored", "none"]
    assert runs[1].adapters[0].layers_touched == 20
    assert runs[1].pipeline.precision == "qfloat8"
    assert renderer.swapper.count_corrupted() == 0


@pytest.mark.parametrize("name", ["lokr_lowrank_bf16", "dora_bf16", "fullrank_bf16", "lora_plus_diff_bf16"])
def test_every_kind_runs_unmerged_on_float8_and_leaves_no_trace(name, quantised, item, goldens, adapter_ref):
    path = goldens / f"adapters/{name}.safetensors"
    renderer = Renderer(quantised["all"], prompt_cache=4)

    def render(*refs):
        return renderer.render(item(adapters=refs), [path] * len(refs), on_progress=ignore)

    base, adapted, again = render(), render(adapter_ref(path)), render()

    assert adapted.image.tobytes() != base.image.tobytes()
    assert again.image.tobytes() == base.image.tobytes()
    assert adapted.pipeline.adapter_mode == "live"


def test_merging_into_float8_is_refused_and_the_base_stays(quantised, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    renderer = Renderer(quantised["all"], prompt_cache=4)
    base = renderer.render(item(), [], on_progress=ignore)

    with pytest.raises(InvalidRequest, match="qfloat8 weights allow only adapter_mode 'live'"):
        renderer.render(item(adapters=(adapter_ref(path),), adapter_mode="merged"), [path], on_progress=ignore)

    assert renderer.render(item(), [], on_progress=ignore).image.tobytes() == base.image.tobytes()


def test_float8_takes_half_the_memory(quantised, components):
    def weight_bytes(model):
        return sum(layer.weight.nbytes for layer in linears(model.transformer))

    assert 2 * weight_bytes(quantised["all"]) == weight_bytes(components("bf16"))
