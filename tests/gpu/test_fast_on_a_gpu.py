"""On a CUDA device: kernels of this project against torch's operations, and the engine `fast`."""

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.checkpoint import staging
from worker.checkpoint.locate import ModuleFiles
from worker.checkpoint.reader import Reader
from worker.kernels.checksum import checksum
from worker.kernels.low_rank import add_low_rank, can_add_low_rank
from worker.lora.merge import lora_delta
from worker.model.demo_model import write_tiny_adapter, write_tiny_checkpoint
from worker.model.fp8 import Fp8Linear, fp8_layers
from worker.model.fp8_attention import attend_in_float8, float8_attention_lacks
from worker.model.fp8_rows import norm_rows, quantize_rows
from worker.model.heads import Heads, attend, join_heads
from worker.model.load import load_components
from worker.model.part_loader import PartLoader
from worker.model.precision import PRECISIONS
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def draw():
    random = torch.Generator("cuda").manual_seed(1)

    def draw(*shape, std=1.0):
        return torch.empty(shape, device="cuda").normal_(0, std, generator=random)

    return draw


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
# All of [dev]'s layers but those that are like another, and some of klein's.
@pytest.mark.parametrize("rank", [1, 4, 16, 24, 32, 48, 64, 128, 256])
@pytest.mark.parametrize(
    "shape",
    [(6144, 6144), (55296, 6144), (6144, 24576), (36864, 6144), (6144, 18432), (18432, 6144), (6144, 128), (128, 6144),
     (6144, 256), (6144, 15360), (3072, 3072), (27648, 3072)],
)  # fmt: skip
def test_a_lora_is_added_with_the_bits_of_torchs_operations(shape, rank, dtype, draw):
    rows, columns = shape
    weight, down, up = draw(*shape, std=0.02).to(dtype), draw(rank, columns, std=0.02), draw(rows, rank, std=0.02)
    expected = (weight + lora_delta(down, up, scale=0.5, multiplier=0.7)).to(dtype)

    non_finite = torch.zeros((), dtype=torch.int32, device="cuda")

    assert can_add_low_rank(weight)
    apart = torch.empty_like(weight)
    for target in (apart, weight):
        add_low_rank(target, down, up, old=weight, multiplier=0.7, scale=0.5, non_finite=non_finite)

    assert not non_finite
    assert int((apart != expected).sum()) == 0
    assert int((weight != expected).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [1, 16, 32])
# Of klein 4B, klein 9B and [dev].
@pytest.mark.parametrize("width", [3072, 4096, 6144])
# OneTrainer's four parts: query, key, value, and the rest.
@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (2, 3), (3, 9)])
def test_a_lora_of_a_part_of_linear1_is_added_with_the_bits_of_torchs_operations(first, last, width, rank, dtype, draw):
    weight, part = draw(9 * width, width, std=0.02).to(dtype), slice(first * width, last * width)
    down, up = draw(rank, width, std=0.02), draw((last - first) * width, rank, std=0.02)
    scale = 3 / rank**0.5
    expected = weight.clone()
    expected[part] = (weight[part] + lora_delta(down, up, scale=scale, multiplier=0.7)).to(dtype)

    non_finite = torch.zeros((), dtype=torch.int32, device="cuda")
    assert can_add_low_rank(weight[part])
    add_low_rank(weight[part], down, up, old=weight[part], multiplier=0.7, scale=scale, non_finite=non_finite)

    assert not non_finite
    # The other parts too: the kernel writes its own rows only.
    assert torch.equal(weight, expected)


def test_a_sum_that_overflows_is_marked_as_not_finite(draw):
    weight, down, up = draw(64, 128).bfloat16(), torch.ones(1, 128).cuda(), torch.full((64, 1), 3.4e38).cuda()

    non_finite = torch.zeros((), dtype=torch.int32, device="cuda")
    add_low_rank(weight, down, up, old=weight, multiplier=1.0, scale=1.0, non_finite=non_finite)

    assert non_finite


@pytest.mark.parametrize("shape", [(3, 8), (55296, 6144), (300, 1000)])
def test_a_checksum_is_that_of_torchs_operations_and_sees_one_bit(shape, draw):
    weight = draw(*shape).bfloat16()

    found = checksum(weight)

    assert int(found) == int(checksum(weight.cpu()))
    weight.view(torch.int16)[1, 5] ^= 1
    assert int(checksum(weight)) != int(found)


@pytest.mark.parametrize(("plain", "gated"), [(6144, None), (None, 36864), (6144, 36864), (100, 1000)])
def test_rows_are_quantised_as_by_torchs_operations(plain, gated, draw):
    parts = [
        None if columns is None else draw(64, 40000).bfloat16()[:, 100 : 100 + columns] for columns in (plain, gated)
    ]

    quantized, scales = quantize_rows(*parts)

    same(quantized, scales, quantize_rows(*(None if part is None else part.cpu() for part in parts)))


@pytest.mark.parametrize("columns", [100, 3072, 4096, 6144])
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_are_normed_and_quantised_as_by_torchs_operations(batch, columns, draw):
    hidden_states = draw(batch, 64, columns, std=30.0).bfloat16() + 7
    modulation = draw(batch, 1, 3 * columns).bfloat16()
    shift, scale, _ = modulation.chunk(3, dim=-1)

    quantized, scales = norm_rows(hidden_states, shift, scale, 1e-6)

    same(quantized, scales, norm_rows(hidden_states.cpu(), shift.cpu(), scale.cpu(), 1e-6))


@pytest.mark.parametrize(("plain", "gated"), [(6144, 36864), (3072, 18432), (100, 1000)])
def test_quantised_columns_are_not_rounded_again(plain, gated, draw):
    values, gate_up = draw(64, plain).bfloat16(), draw(64, gated).bfloat16()
    values, _ = quantize_rows(values, None)
    scales = torch.full((64, 1), 0.003, device="cuda")

    joined, new_scales = quantize_rows(values, gate_up, scales)

    # Smaller numbers lose bits when they become smaller still.
    normal = (values.float() * (scales / new_scales)).abs() >= torch.finfo(torch.float8_e4m3fn).smallest_normal
    assert torch.equal((joined[:, :plain].float() * new_scales)[normal], (values.float() * scales)[normal])
    same(joined, new_scales, quantize_rows(values.cpu(), gate_up.cpu(), scales.cpu()))


needs_float8_attention = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(float8_attention_lacks(torch.device("cuda:0"), heads=48, width=128)),
    reason="attention in float8 does not run here",
)
# Tokens of text and of an image, or of both: of 1024x1024, and numbers that no tile divides.
PARTS = [(4608,), (512, 4096), (1, 3), (77, 1023), (1300,)]


@pytest.fixture
def heads(draw):
    def heads(tokens, number=48, batch=1, std=1.0):
        # As in a block: queries, keys and values are slices of one tensor.
        query, key, value = draw(batch, tokens, 3, number, 128, std=std).bfloat16().unbind(2)
        weights = [(1 + draw(128, std=0.1)).bfloat16() for _ in range(2)]
        return Heads(query, key, value, *weights)

    return heads


def turned(draw, tokens):
    angles = draw(tokens, 64).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def relative(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


@needs_float8_attention
@pytest.mark.parametrize("number", [24, 32, 48])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("counts", PARTS)
def test_attention_in_float8_is_near_bfloat16_and_repeats_to_the_bit(counts, batch, number, heads, draw):
    parts, turns = [heads(count, number, batch) for count in counts], turned(draw, sum(counts))

    rows = attend_in_float8(parts, turns, 1e-6)

    exact = attend(*join_heads(parts, turns, 1e-6)).flatten(2, 3)
    assert relative(rows.values.float() * rows.scales, exact) < 0.08
    again = attend_in_float8(parts, turns, 1e-6)
    assert torch.equal(rows.values.view(torch.uint8), again.values.view(torch.uint8))
    assert torch.equal(rows.scales, again.scales)


@needs_float8_attention
def test_attention_in_float8_rounds_heads_as_the_host_does(heads, draw):
    parts, turns = [heads(77, std=3.0), heads(200, std=0.2)], turned(draw, 277)

    rows = attend_in_float8(parts, turns, 1e-6)

    on_host = [Heads(*(values.cpu() for values in part)) for part in parts]
    expected = attend_in_float8(on_host, tuple(values.cpu() for values in turns), 1e-6)
    assert torch.allclose(rows.scales.cpu(), expected.scales, rtol=1e-6)
    # The host does not round probabilities, and rounds heads to bfloat16 while it turns them.
    dense, expected = (found.values.float().cpu() * found.scales.cpu() for found in (rows, expected))
    assert relative(dense, expected) < 0.055


@needs_float8_attention
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_a_head_that_is_no_number_shows_in_the_results(field, bad, heads, draw):
    part = heads(300)
    part[field][0, 5, 7, 9] = bad

    rows = attend_in_float8([part], turned(draw, 300), 1e-6)

    assert not (rows.values.float() * rows.scales).isfinite().all()


@needs_float8_attention
def test_attention_in_float8_is_refused_for_heads_of_another_width():
    assert float8_attention_lacks(torch.device("cuda:0"), heads=4, width=16) == "Triton, and heads of 128 channels"


def same(quantized, scales, expected):
    """Hold a kernel's results to those of torch's operations on the host."""
    values, expected_scales = (found.cuda() for found in expected)
    assert torch.allclose(scales, expected_scales, rtol=1e-5)
    assert float((quantized.float() != values.float()).float().mean()) < 1e-3  # ties, where a division rounds otherwise
    assert torch.allclose(quantized.float(), values.float(), rtol=0.13)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp8")
    renderer = Renderer(load_components(settings, device=torch.device("cuda:0"), hf_token=None), prompt_cache=4)
    renderer.warm_up()
    return renderer


def test_fast_images_repeat_to_the_bit_whatever_was_merged_between(renderer, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    write_tiny_adapter(adapter)

    def render(path=None):
        spec = ItemSpec(
            model="flux2", prompt="a blue star", neg="", width=256, height=192, requested_width=256,
            requested_height=192, seed=5, num_inference_steps=3, guidance_scale=4.0, engine="fast",
            adapters=() if path is None else (adapter_ref(path, 1.0),), output_format="png",
        )  # fmt: skip
        return renderer.render(spec, [path] if path else [], on_progress=lambda _: None)

    before = {name: layer.weight.clone() for name, layer in fp8_layers(renderer.swapper.components.transformer).items()}
    base, merged = render(), render(adapter)

    assert merged.image.tobytes() != base.image.tobytes()
    assert render().image.tobytes() == base.image.tobytes()
    assert render(adapter).image.tobytes() == merged.image.tobytes()
    render()
    for name, layer in fp8_layers(renderer.swapper.components.transformer).items():
        assert torch.equal(layer.weight.view(torch.uint8), before[name].view(torch.uint8)), name
    assert (renderer.swapper.count_corrupted(), renderer.swapper.corrupted) == (0, 0)
    assert 0 < base.pipeline.drift < 0.2


@pytest.fixture(scope="module")
def small_transformer(tmp_path_factory):
    """A double and eight single blocks of 128-wide heads on disk, 0.3 GB, and their weights on the host."""
    folder = tmp_path_factory.mktemp("small")
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=1, num_single_layers=8, num_attention_heads=8, joint_attention_dim=1024, guidance_embeds=True
        )
    model.to_empty(device="cuda").to(torch.bfloat16).requires_grad_(False)
    random = torch.Generator("cuda").manual_seed(3)
    for weight in model.parameters():
        weight.normal_(0, 0.03, generator=random)
    model.save_pretrained(folder)
    files = ModuleFiles("diffusers", (folder / "diffusion_pytorch_model.safetensors",), folder / "config.json")
    return files, {name: weight.cpu() for name, weight in model.state_dict().items()}


# One layer in each batch, or some.
@pytest.mark.parametrize("batch_bytes", [1, 30_000_000])
def test_weights_are_quantised_while_they_are_read_and_the_device_never_holds_the_dense_ones(
    small_transformer, batch_bytes, monkeypatch
):
    source, dense = small_transformer
    monkeypatch.setattr(staging, "_BATCH_BYTES", batch_bytes)
    device = torch.device("cuda:0")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    with Reader(device) as reader:
        loaded, regions = PartLoader(device, reader).load_transformer(source, PRECISIONS["fp8"])

    peak = torch.cuda.max_memory_allocated() - before
    layers = fp8_layers(loaded)
    for name, weight in loaded.state_dict().items():
        assert weight.device == device
        if name not in layers:
            assert torch.equal(weight.cpu(), dense[name]), name
            continue
        expected = Fp8Linear(dense[name].to(device))
        assert torch.equal(weight.view(torch.uint8), expected.weight.view(torch.uint8)), name
        assert torch.equal(layers[name].scale, expected.scale), name
    assert regions.keys() == dense.keys()
    # Float8 weights are half of the dense ones. The layers outside the blocks and two batches are added to them.
    assert peak < 0.85 * sum(weight.nbytes for weight in dense.values())
