"""The engine `fast`: float8 in the blocks, merged from bfloat16, and how far that is from the exact engine."""

import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import CheckpointError, InvalidRequest, WeightsLost
from shared.settings import ModelSettings
from worker.checkpoint import staging
from worker.checkpoint.locate import ModuleFiles
from worker.checkpoint.reader import Reader
from worker.lora.hot_swap import AdapterSwapper
from worker.model.compile import compile_blocks
from worker.model.fp8 import Fp8Linear, GatedFp8Linear, fp8_layers
from worker.model.fp8_rows import norm_rows, quantize_rows
from worker.model.load import load_components
from worker.model.modules import load_fp8_transformer, load_transformer
from worker.model.part_loader import PartLoader
from worker.model.placement import Placement
from worker.model.precision import PRECISIONS
from worker.model.qfloat8 import FLOAT8
from worker.rendering.renderer import Renderer

CPU = torch.device("cpu")


@pytest.fixture
def fast(model_settings):
    """The goldens' model under `fp8`."""
    return load_components(model_settings("fp8"), device=CPU, hf_token=None)


@pytest.fixture
def adapter(goldens, adapter_ref):
    path = goldens / "adapters/lora_alllinear_bf16.safetensors"
    return [(adapter_ref(path, 1.0), path)]


def test_each_row_reaches_the_largest_float8_value():
    values = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 0.0, 3e-3]])

    quantized, scales = quantize_rows(values, None)

    assert quantized.float().abs().amax(1).tolist() == [448.0, 0.0, 448.0]
    assert torch.allclose(quantized.float() * scales, values, rtol=2**-4)


def test_gated_rows_are_quantised_after_the_gate():
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    gate, up = values.float().chunk(2, dim=1)

    quantized, scales = quantize_rows(None, values)

    assert torch.allclose(quantized.float() * scales, torch.nn.functional.silu(gate) * up, rtol=2**-4, atol=1e-3)


def test_normed_rows_are_quantised_after_the_modulation():
    random = torch.Generator().manual_seed(5)
    values, shift, scale = (torch.randn(2, rows, 32, generator=random).bfloat16() for rows in (3, 1, 1))

    quantized, scales = norm_rows(5 * values + 1, shift, scale, 1e-6)

    normed = torch.nn.functional.layer_norm((5 * values + 1).float(), (32,), eps=1e-6)
    assert quantized.float().abs().amax(-1).eq(448).all()
    assert torch.allclose(quantized.float() * scales, (1 + scale) * normed + shift, rtol=2**-4, atol=2e-3)


@pytest.mark.parametrize("kind", [Fp8Linear, GatedFp8Linear])
def test_a_product_is_near_that_of_the_whole_weight(kind):
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 32, generator=random).bfloat16()
    values = torch.randn(2, 5, 64 if kind is GatedFp8Linear else 32, generator=random).bfloat16()
    layer = kind(weight)

    product = layer(values)
    layer.dense = weight
    exact = layer(values)

    assert product.shape == exact.shape == (2, 5, 24)
    assert 0 < relative(product, exact) < 0.06


def test_the_last_layer_of_a_single_block_multiplies_both_of_its_inputs():
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 16 + 24, generator=random).bfloat16()
    attended, gate_up = (torch.randn(1, 5, width, generator=random).bfloat16() for width in (16, 48))
    layer = Fp8Linear(weight)

    product = layer(attended, gate_up)
    layer.dense = weight
    exact = layer(attended, gate_up)

    assert 0 < relative(product, exact) < 0.06


def relative(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def test_only_the_linear_layers_of_blocks_are_float8(fast):
    layers = fp8_layers(fast.transformer)

    matrices = {name for name, weight in fast.transformer.named_parameters() if weight.ndim == 2}
    assert layers.keys() == {name for name in matrices if "blocks." in name}
    assert {layer.weight.dtype for layer in layers.values()} == {torch.float8_e4m3fn}
    rest = dict(fast.transformer.named_parameters())
    assert {rest[name].dtype for name in rest.keys() - layers.keys()} == {torch.bfloat16}


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_adapters_are_merged_in_bfloat16_and_removed_to_the_bit(place, fast, components, adapter, goldens, adapter_ref):
    other = goldens / "adapters/dora_bf16.safetensors"
    lists = [adapter, [], [(adapter_ref(other, 0.7), other)], adapter, [(adapter_ref(other, 0.7), other), *adapter], []]
    swapper = AdapterSwapper(replace(fast, placement=Placement("resident", place, 0)))
    exact = AdapterSwapper(components("bf16"))

    for adapters in (*lists, *lists):
        swapper.activate(adapters)
        exact.activate(adapters)
        for name, layer in fp8_layers(fast.transformer).items():
            expected = Fp8Linear(exact._weights._weights[name]).weight
            assert torch.equal(layer.weight.view(torch.uint8), expected.view(torch.uint8)), name
        assert (swapper.count_corrupted(), swapper.corrupted) == (0, 0)


@pytest.fixture
def source(checkpoint):
    return ModuleFiles("bfl", (checkpoint / "flux2-dev.safetensors",))


@pytest.fixture(params=["bfl", "diffusers"])
def source_of_a_layout(request, source, tmp_path):
    if request.param == "bfl":
        return source
    load_transformer(source, device=CPU, dtype=torch.bfloat16, fused_qkv=False).save_pretrained(tmp_path)
    return ModuleFiles("diffusers", (tmp_path / "diffusion_pytorch_model.safetensors",), tmp_path / "config.json")


@pytest.fixture
def changed(source, tmp_path):
    """Write the goldens' transformer with another tensor under a name, or without the tensor for None."""

    def write(change):
        (file,) = source.weights
        tensors = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / file.name)
        return ModuleFiles("bfl", (tmp_path / file.name,))

    return write


# A layer in each batch, several layers in some, and all layers in one.
@pytest.mark.parametrize("batch_bytes", [1, 50_000, 1_000_000_000])
def test_weights_that_are_quantised_while_they_are_read_equal_the_quantised_dense_ones(
    source_of_a_layout, batch_bytes, monkeypatch
):
    monkeypatch.setattr(staging, "_BATCH_BYTES", batch_bytes)
    dense = load_transformer(source_of_a_layout, device=CPU, dtype=torch.bfloat16, fused_qkv=False).state_dict()

    with Reader(CPU) as reader:
        loaded, regions = PartLoader(CPU, reader).load_transformer(source_of_a_layout, PRECISIONS["fp8"])
        reread = {name: torch.empty_like(weight) for name, weight in dense.items()}
        for name, target in reread.items():
            reader.read_rows(regions[name], target)()

    layers = fp8_layers(loaded)
    assert loaded.state_dict().keys() == dense.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(reread[name], dense[name]), name
        if name not in layers:
            assert torch.equal(weight, dense[name]), name
            continue
        expected = Fp8Linear(dense[name])
        assert torch.equal(weight.view(torch.uint8), expected.weight.view(torch.uint8)), name
        assert torch.equal(layers[name].scale, expected.scale), name


def test_only_the_weights_in_blocks_must_be_stored_in_bf16(source, changed):
    mixed = changed(lambda name, tensor: tensor if "blocks." in name else tensor.float())

    with Reader(CPU) as reader:
        loader = PartLoader(CPU, reader)
        expected, _ = loader.load_transformer(source, PRECISIONS["fp8"])
        loaded, regions = loader.load_transformer(mixed, PRECISIONS["fp8"])

    for name, weight in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].view(torch.uint8), weight.view(torch.uint8)), name
    assert fp8_layers(loaded).keys() <= regions.keys()
    assert "x_embedder.weight" not in regions


# The loader converts values of the first dtype and refuses to read those of the second: neither may be reached.
@pytest.mark.parametrize("stored", [torch.float32, FLOAT8])
def test_a_checkpoint_in_another_dtype_is_refused_before_its_weights_are_read(stored, changed, monkeypatch):
    monkeypatch.setattr("worker.model.modules.fill", lambda *_, **__: pytest.fail("weights are read"))
    other = changed(lambda _, tensor: tensor.to(stored))

    with pytest.raises(
        CheckpointError,
        match=r"fp8 needs weights in bf16, but the file stores single_\w*\.0\.attn\.to_out\.weight in another dtype",
    ):
        load_fp8_transformer(other, device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensor: None, r"tensor 'double_blocks\.1\.img_attn\.qkv\.weight' is missing"),
        (
            lambda tensor: tensor[:-1].contiguous(),
            r"fills transformer_blocks\.1\.attn\.to_v\.weight with shape .*the model needs",
        ),
    ],
)
def test_a_weight_that_is_missing_or_has_another_shape_is_named_as_in_other_precisions(change, problem, changed):
    other = changed(lambda name, tensor: change(tensor) if name == "double_blocks.1.img_attn.qkv.weight" else tensor)

    for load in (load_fp8_transformer, load_transformer):
        with pytest.raises(CheckpointError, match=problem):
            load(other, device=CPU, dtype=torch.bfloat16)


def test_a_file_that_is_cut_off_while_it_loads_is_named(changed):
    shortened = changed(lambda _, tensor: tensor)
    shortened.open()  # reads the header
    (file,) = shortened.weights
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)

    with pytest.raises(CheckpointError, match=r"flux2-dev\.safetensors: ends at byte .* in the middle of a tensor"):
        load_fp8_transformer(shortened, device=CPU, dtype=torch.bfloat16)


def test_a_checkpoint_that_was_overwritten_renders_no_image(fast, adapter, monkeypatch):
    swapper = AdapterSwapper(fast)
    swapper.activate(adapter)
    put_back = swapper._weights._base.restore

    def damaged(name, weight):
        wait = put_back(name, weight)

        def then():
            wait()
            weight[0, 0] += 1

        return then

    monkeypatch.setattr(swapper._weights._base, "restore", damaged)

    with pytest.raises(WeightsLost, match="restored weights differ from those that were loaded"):
        swapper.activate([])


@pytest.mark.parametrize("place", ["device", "file"])
def test_an_overwritten_checkpoint_is_noticed_even_if_the_swap_that_read_it_failed(
    place, checkpoint, adapter, tmp_path, failing_at_layer, write_over
):
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    settings = ModelSettings(
        path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp8", clean_weights=place
    )
    swapper = AdapterSwapper(load_components(settings, device=CPU, hf_token=None))
    write_over(folder / "flux2-dev.safetensors")

    with failing_at_layer(20, torch.OutOfMemoryError("full")):
        for wanted in (adapter, []):
            with pytest.raises(WeightsLost, match="restored weights differ from those that were loaded"):
                swapper.activate(wanted)


def test_a_merge_holds_the_dense_weights_of_two_blocks_at_most(fast, adapter, monkeypatch):
    swapper = AdapterSwapper(fast)
    begin, dense, held = swapper._weights._begin_restore, [], []

    def begin_restore(names, *, changed):
        values, wait = begin(names, changed=changed)
        dense.append([weakref.ref(value) for value in values.values()])
        # One tensor of the group before may still be the loop's variable.
        held.append(sum(sum(ref() is not None for ref in refs) > 1 for refs in dense))
        return values, wait

    monkeypatch.setattr(swapper._weights, "_begin_restore", begin_restore)
    swapper.activate(adapter)

    assert max(held) == 2


def test_a_wrong_scale_counts_as_a_corrupted_weight(fast, adapter):
    swapper = AdapterSwapper(fast)
    swapper.activate(adapter)
    swapper.activate([])

    layer = next(iter(fp8_layers(fast.transformer).values()))
    layer.scale[3] *= 2

    assert swapper.count_corrupted() == 1


def test_every_image_reports_how_far_a_step_is_from_the_exact_one(fast, model_settings, item):
    renderer = Renderer(fast, prompt_cache=2)
    renderer.warm_up()
    exact = Renderer(load_components(model_settings("bf16"), device=CPU, hf_token=None), prompt_cache=2)
    call = exact.inputs.typical_call()
    with torch.no_grad():
        ours, theirs = renderer._engines["fast"].predict(call), exact._engines["exact"].predict(call)

    pipeline = renderer.render(item(engine="fast"), [], on_progress=lambda _: None).pipeline

    assert (pipeline.engine, pipeline.precision) == ("fast", "fp8, text encoder bf16")
    assert pipeline.drift == pytest.approx(relative(ours, theirs), rel=0.02)
    assert 0 < pipeline.drift < 0.1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler, which compiling needs on a CPU"
)
@pytest.mark.parametrize("attention", ["bf16", "fp8"])
def test_compiled_blocks_equal_uncompiled_ones_up_to_roundings(attention, components, model_settings):
    settings = model_settings("fp8").model_copy(update={"attention": attention})
    fast = load_components(settings, device=CPU, hf_token=None)
    exact, renderer = Renderer(components("bf16"), prompt_cache=2), Renderer(fast, prompt_cache=2)
    call = renderer.inputs.typical_call()
    predict = torch.no_grad()(renderer._engines["fast"].predict)
    with torch.no_grad():
        dense = exact._engines["exact"].predict(call)
    written = predict(call)
    compile_blocks(fast.transformer, exact=False)

    compiled = predict(call)

    assert relative(compiled, dense) < 1.1 * relative(written, dense)
    assert 0 < relative(compiled, written) < 1.5 * relative(written, dense)


def test_a_worker_offers_the_engine_of_its_precision(fast, item, model_settings):
    renderer = Renderer(fast, prompt_cache=2)
    exact = Renderer(load_components(model_settings("bf16"), device=CPU, hf_token=None), prompt_cache=2)

    assert (renderer.engines, exact.engines) == (("fast",), ("exact",))
    with pytest.raises(InvalidRequest, match="does not offer the engine 'exact': FLUX2_MODEL_PRECISION must be bf16"):
        renderer.render(item(), [], on_progress=lambda _: None)
    with pytest.raises(InvalidRequest, match="does not offer the engine 'fast': FLUX2_MODEL_PRECISION must be fp8"):
        exact.render(item(engine="fast"), [], on_progress=lambda _: None)


def test_adapters_cannot_run_unmerged_on_fp8_weights(fast, adapter):
    with pytest.raises(InvalidRequest, match="fp8 weights allow only adapter_mode 'merged'"):
        AdapterSwapper(fast).activate(adapter, mode="live")
