"""On a CUDA device: random adapters of every kind, in each precision and mode, against formulas in float64."""

import shutil
from dataclasses import replace

import pytest
import torch
from random_adapters import (
    KINDS,
    LIMITS,
    Draw,
    distance,
    effective_weights,
    hold_to_formulas,
    random_files,
    write_file,
    write_wide_transformer,
)

from shared.settings import ModelSettings
from worker.kernels import low_rank
from worker.lora.hot_swap import AdapterSwapper
from worker.model.load import load_components
from worker.model.placement import Placement
from worker.rendering.denoise import TransformerInputs, predict
from worker.rendering.latents import image_ids, text_ids
from worker.verify.golden_models import adapter_ref

pytestmark = [
    # torch 2.11 says so of itself when it is first asked to compile.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(400),
]

DEVICE = torch.device("cuda", 0)
# Of the wide model, which has 12 times the goldens' width; klein 4B has 3072.
WIDTH = 768
ALL_KINDS = [(layout, kind, "tensor") for layout in ("onetrainer", "diffusers", "kohya") for kind in KINDS]


@pytest.fixture(scope="module")
def checkpoints(goldens, tmp_path_factory):
    """The goldens' model, and one whose layers are large enough for the kernels, with heads as in real models."""
    folders = {}
    for name in ("tiny", "wide"):
        folders[name] = folder = tmp_path_factory.mktemp(name)
        shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
        for part in ("mistral_tiny", "mistral_processor_pad_left"):
            shutil.copytree(goldens / "text" / part, folder / "text_encoder", dirs_exist_ok=True)
    tiny = goldens / "weights/flux2_dev_tiny.safetensors"
    shutil.copy(tiny, folders["tiny"] / "flux2-dev.safetensors")
    write_wide_transformer(tiny, folders["wide"] / "flux2-dev.safetensors", factor=WIDTH // 64)
    return folders


@pytest.fixture(scope="module")
def load(checkpoints):
    def make(name, precision, **values):
        path = checkpoints[name]
        settings = ModelSettings(path=str(path), text_encoder=str(path / "text_encoder"), precision=precision, **values)
        components = load_components(settings, device=DEVICE, hf_token=None)
        return replace(components, placement=Placement("resident", "host", 0))

    return make


def base_on_the_host(load, name, precision):
    """Return the dense weights that adapters are merged into; those of float8 are bfloat16."""
    dense = load(name, "bf16" if precision == "fp8" else precision, compile=False)
    return {layer: weight.cpu() for layer, weight in effective_weights(dense).items()}


@pytest.mark.parametrize(("precision", "mode", "limit"), LIMITS)
def test_each_layer_multiplies_by_the_weight_of_its_kinds_formula(precision, mode, limit, load, tmp_path):
    swapper = AdapterSwapper(load("tiny", precision))

    files = random_files(len(precision) + len(mode))
    base = base_on_the_host(load, "tiny", precision)
    hold_to_formulas(swapper, files, base=base, mode=mode, limit=limit, folder=tmp_path)


@pytest.mark.parametrize(("precision", "mode", "limit"), LIMITS)
def test_layers_of_a_wide_model_multiply_by_the_weight_of_the_formula(precision, mode, limit, load, tmp_path):
    swapper = AdapterSwapper(load("wide", precision, compile=False))

    base = base_on_the_host(load, "wide", precision)
    hold_to_formulas(swapper, ALL_KINDS, base=base, mode=mode, limit=limit, folder=tmp_path)


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 3e-3), ("fp8", 4e-2)])
def test_the_kernel_adds_loras_to_whole_layers_and_to_their_parts(precision, limit, load, tmp_path, monkeypatch):
    swapper, shapes = AdapterSwapper(load("wide", precision, compile=False)), set()

    def add_low_rank(weight, *args, **kwargs):
        shapes.add(tuple(weight.shape))
        low_rank.add_low_rank(weight, *args, **kwargs)

    monkeypatch.setattr("worker.lora.merge.add_low_rank", add_low_rank)
    files = [(layout, "lora", "tensor") for layout in ("onetrainer", "kohya")]
    base = base_on_the_host(load, "wide", precision)
    hold_to_formulas(swapper, files, base=base, mode="merged", limit=limit, folder=tmp_path, whole=True)

    # A third of qkv or of linear1's first rows, the rest of linear1, and all of it.
    assert {(WIDTH, WIDTH), (6 * WIDTH, WIDTH), (9 * WIDTH, WIDTH)} <= shapes


@torch.no_grad()
def step(components):
    """Return the velocity of one step, as the worker's engine for these weights computes it."""
    random = torch.Generator().manual_seed(3)
    transformer, dtype = components.transformer, components.dtype

    def draw(*shape):
        # Through bfloat16, so that all precisions have the same inputs.
        return torch.randn(shape, generator=random).bfloat16().to(DEVICE, dtype)

    call = TransformerInputs(
        draw(1, 256, transformer.config.in_channels), torch.tensor([0.5]).to(DEVICE, dtype), draw(1, 64, 48),
        image_ids(16, 16).to(DEVICE), text_ids(64).to(DEVICE), torch.tensor([4.0]).to(DEVICE, dtype),
    )  # fmt: skip
    return predict(transformer, call).double()


def test_steps_of_the_fast_engine_follow_each_kind_of_adapter_and_return_to_the_base_bits(load, tmp_path):
    fast, exact = AdapterSwapper(load("wide", "fp8")), AdapterSwapper(load("wide", "bf16", compile=False))
    assert fast.components.compiled
    base = base_on_the_host(load, "wide", "bf16")
    without, fast_without = step(exact.components), step(fast.components)
    assert distance(fast_without, without) < 0.1

    for seed, kind in enumerate(KINDS):
        path = tmp_path / f"{kind}.safetensors"
        write_file(path, layout="onetrainer", kind=kind, alpha="tensor", base=base, draw=Draw(seed))
        for swapper in (fast, exact):
            swapper.activate([(adapter_ref(path, 0.7), path)])
        wanted = step(exact.components)

        # Float8's own error is a fraction of the adapter's effect.
        assert distance(step(fast.components), wanted) < 0.5 * distance(without, wanted), kind

    fast.activate([])
    assert torch.equal(step(fast.components), fast_without)


@torch.no_grad()
def test_float8_products_multiply_by_the_weight_of_the_formula(load, tmp_path):
    components = load("wide", "fp8", compile=False)
    swapper, base = AdapterSwapper(components), base_on_the_host(load, "wide", "fp8")
    attn = components.transformer.single_transformer_blocks[0].attn
    path, layer = tmp_path / "made.safetensors", "single_blocks.0.linear1"

    for seed, kind in enumerate(KINDS):
        draw = Draw(seed)
        updates = write_file(path, layout="onetrainer", kind=kind, alpha="tensor", base=base, draw=draw, whole=True)
        swapper.activate([(adapter_ref(path, 0.7), path)])
        expected = base[layer].double()
        for of, rows, update, scale in updates:
            if of == layer:
                expected[rows] = update.merged(scale=scale, multiplier=0.7)
        inputs = draw.normal(1, 64, WIDTH).bfloat16()

        product = attn.to_qkv_mlp_proj(inputs.to(DEVICE)).cpu()

        # Both factors are rounded to float8, in steps of up to 1/8.
        assert distance(product, inputs.double() @ expected.T) < 6e-2, kind
