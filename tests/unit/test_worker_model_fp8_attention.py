"""Attention in float8: near attention in bfloat16, whatever the heads hold, and its share of the stated distance."""

import importlib.util
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from shared.errors import CheckpointError
from shared.settings import Settings
from worker.model import attention, fp8_attention
from worker.model.fp8 import Fp8Linear, attends_in_float8, attention_in_bfloat16
from worker.model.fp8_attention import attend_in_float8
from worker.model.fp8_rows import QuantizedRows, quantize_rows
from worker.model.heads import Heads, attend, join_heads
from worker.model.load import load_components
from worker.rendering.renderer import Renderer
from worker.serve import _load, _settings_for

CPU = torch.device("cpu")
EPS = 1e-6
# Of results from those in bfloat16: each of queries, keys, values and results is rounded by 0.026.
NEAR = 0.08


def relative(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture
def draw():
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=random).bfloat16()

    return draw


@pytest.fixture
def heads(draw):
    """Draw the heads of some tokens, with norm weights of one size."""

    def heads(tokens, norm=1.0, batch=1):
        query, key, value = (draw(batch, tokens, 3, 16) for _ in range(3))
        weights = (norm * (1 + draw(16).abs() / 4)).bfloat16()
        return Heads(query, key, value, weights, weights.flip(0))

    return heads


@pytest.fixture
def angles(draw):
    def angles(tokens):
        turned = draw(tokens, 8).float().repeat_interleave(2, dim=-1)
        return turned.cos(), turned.sin()

    return angles


def in_bfloat16(parts, turns):
    return attend(*join_heads(parts, turns, EPS)).flatten(2, 3)


def dense(rows):
    return rows.values.float() * rows.scales


@pytest.mark.parametrize("counts", [(40,), (9, 31)])
@pytest.mark.parametrize("batch", [1, 2])
def test_results_are_near_those_in_bfloat16(batch, counts, heads, angles):
    parts, turns = [heads(count, batch=batch) for count in counts], angles(sum(counts))

    rows = attend_in_float8(parts, turns, EPS)

    assert (rows.values.shape, rows.values.dtype) == ((batch, 40, 48), torch.float8_e4m3fn)
    assert (rows.scales.shape, rows.scales.dtype) == ((batch, 40, 1), torch.float32)
    assert 0.01 < relative(dense(rows), in_bfloat16(parts, turns)) < NEAR


def test_parts_have_one_scale_although_their_norms_have_other_weights(heads, angles):
    parts, turns = [heads(9, norm=0.1), heads(31)], angles(40)

    rows = attend_in_float8(parts, turns, EPS)

    assert len(rows.scales.unique()) == 1
    assert 0.01 < relative(dense(rows), in_bfloat16(parts, turns)) < NEAR


def test_no_query_is_too_long_for_its_scale(draw):
    # The norm makes a single channel as long as all others together could be, and nothing turns it away.
    query, key = torch.zeros(2, 1, 40, 3, 16).bfloat16()
    query[..., 0], key[:, :20, :, 0], key[:, 20:, :, 1] = 1e4, 1e4, 1e4
    weights = torch.full((16,), 0.5).bfloat16()
    part, turns = Heads(query, key, draw(1, 40, 3, 16), weights, weights), (torch.ones(40, 16), torch.zeros(40, 16))

    rows = attend_in_float8([part], turns, EPS)

    assert relative(dense(rows), in_bfloat16([part], turns)) < NEAR


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e4])
def test_values_of_every_size_keep_their_accuracy(size, heads, angles):
    part, turns = heads(40), angles(40)
    part.value.mul_(size)

    rows = attend_in_float8([part], turns, EPS)

    expected = in_bfloat16([part], turns)
    assert relative(dense(rows), expected) < NEAR if size else not dense(rows).any()


def test_norms_of_zeros_give_the_mean_of_the_values(heads, angles):
    part, turns = heads(40, norm=0.0), angles(40)

    rows = attend_in_float8([part], turns, EPS)

    assert relative(dense(rows), in_bfloat16([part], turns)) < NEAR


def test_a_group_of_devices_never_attends_in_float8(heads, angles, monkeypatch):
    monkeypatch.setattr(attention, "attend_in_group", lambda queries, *_: queries[0])
    part = heads(40)

    attended = attention._attend([part], angles(40), eps=EPS, group="a group", in_float8=True)

    assert torch.equal(attended, part.query.flatten(2, 3))


def test_a_value_that_is_no_number_shows_in_the_results(heads, angles):
    part = heads(40)
    part.value[0, 3, 1, 5] = torch.inf

    assert not attend_in_float8([part], angles(40), EPS).values.float().isfinite().all()


def test_quantised_columns_are_not_rounded_again(draw):
    plain, gate_up = draw(5, 16), draw(5, 48)
    values, scales = quantize_rows(plain, None)
    # One scale for all rows, as attention has.
    values, scales = (values.float() * scales / 0.003).to(values.dtype), torch.full((5, 1), 0.003)

    joined, new_scales = quantize_rows(values, gate_up, scales)

    assert torch.equal(joined[:, :16].float() * new_scales, values.float() * scales)
    assert torch.equal((new_scales / scales).log2(), (new_scales / scales).log2().round())
    gate, up = gate_up.float().chunk(2, dim=1)
    assert torch.allclose(
        joined[:, 16:].float() * new_scales, torch.nn.functional.silu(gate) * up, rtol=2**-4, atol=1e-3
    )
    # The smallest scale that is a multiple and large enough.
    largest = joined.float().abs().amax(1)
    assert (largest <= 448).all()
    assert (largest > 224).all()


def test_a_layer_takes_quantised_rows_alone_or_before_gate_and_up(draw):
    attended, gate_up = draw(1, 5, 16), draw(1, 5, 48)
    rows = QuantizedRows(*(part[None] for part in quantize_rows(attended[0], None)))
    for weight, others in ((draw(24, 16), ()), (draw(24, 16 + 24), (gate_up,))):
        layer = Fp8Linear(weight)

        product = layer(rows, *others)

        layer.dense = weight
        assert 0 < relative(product, layer(attended, *others)) < 0.06
        # The scales of quantised rows count with a dense weight too.
        assert 0 < relative(layer(rows, *others), layer(attended, *others)) < 0.06


@pytest.fixture
def attending(model_settings):
    """The goldens' model under `fp8`, with attention in float8."""
    settings = model_settings("fp8").model_copy(update={"attention": "fp8"})
    return load_components(settings, device=CPU, hf_token=None)


def test_every_image_reports_the_share_of_attention(attending, model_settings, item):
    renderer = Renderer(attending, prompt_cache=2)
    renderer.warm_up()
    exact = Renderer(load_components(model_settings("bf16"), device=CPU, hf_token=None), prompt_cache=2)
    call, predict = exact.inputs.typical_call(), renderer._engines["fast"].predict
    with torch.no_grad():
        theirs = exact._engines["exact"].predict(call)
        whole = relative(predict(call), theirs)
        with attention_in_bfloat16(attending.transformer):
            layers = relative(predict(call), theirs)

    pipeline = renderer.render(item(engine="fast"), [], on_progress=lambda _: None).pipeline

    assert pipeline.precision == "fp8, attention fp8, text encoder bf16"
    assert pipeline.drift == pytest.approx(whole, rel=0.02)
    assert pipeline.attention_drift == pytest.approx(whole - layers, abs=0.02 * whole)
    assert whole != layers
    assert attends_in_float8(attending.transformer)


def test_attention_in_bfloat16_has_no_share(model_settings, item):
    renderer = Renderer(load_components(model_settings("fp8"), device=CPU, hf_token=None), prompt_cache=2)
    renderer.warm_up()

    pipeline = renderer.render(item(engine="fast"), [], on_progress=lambda _: None).pipeline

    assert (pipeline.precision, pipeline.attention_drift) == ("fp8, text encoder bf16", None)


@pytest.mark.parametrize(
    ("distance", "lacks"),
    [
        (0.06, None),
        (0.2, "results differ by 0.20 of their length"),
        (math.nan, "results differ by nan of their length"),
    ],
)
def test_a_gpu_whose_results_are_far_or_no_numbers_does_not_attend_in_float8(distance, lacks, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8_attention, "norm_kernel_runs", lambda device, **heads: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(fp8_attention, "_distance", lambda device, **heads: distance)

    found = fp8_attention.float8_attention_lacks.__wrapped__(torch.device("cuda:0"), heads=48, width=128)

    assert found == (lacks and f"a cuDNN that computes it well: {lacks}")


def test_a_slot_reports_the_precision_of_its_images(model_settings, item):
    # Forecasts find measured times by it.
    settings = Settings(model=model_settings("fp8").model_copy(update={"attention": "fp8"}))
    ledger = SimpleNamespace(workers=SimpleNamespace(publish_base_model=lambda *_, **__: None))

    renderer, slot = _load(settings, "one", [CPU], ledger, store=None, followers=None)

    image = renderer.render(item(engine="fast"), [], on_progress=lambda _: None)
    assert slot.precision == image.pipeline.precision == "fp8, attention fp8, text encoder bf16"


def test_attention_in_float8_without_float8_weights_is_refused(model_settings):
    settings = model_settings("bf16").model_copy(update={"attention": "fp8"})

    with pytest.raises(
        CheckpointError, match="FLUX2_MODEL_ATTENTION=fp8 needs FLUX2_MODEL_PRECISION=fp8; otherwise set it to bf16"
    ):
        load_components(settings, device=CPU, hf_token=None)


def test_a_slot_of_several_gpus_attends_in_bfloat16_and_says_so(caplog):
    settings = Settings(model={"precision": "fp8", "attention": "fp8"})

    with caplog.at_level(logging.WARNING):
        alone, group = _settings_for([CPU], settings), _settings_for([CPU, CPU], settings)

        quiet = _settings_for([CPU, CPU], Settings(model={"precision": "fp8"}))
        # Refused when the model is loaded.
        wrong = _settings_for([CPU, CPU], Settings(model={"precision": "bf16", "attention": "fp8"}))

    assert [each.model.attention for each in (alone, group, quiet, wrong)] == ["fp8", "bf16", "bf16", "fp8"]
    assert [record.getMessage() for record in caplog.records] == [
        "attention stays in bf16: in fp8 it runs on one GPU only"
    ]
