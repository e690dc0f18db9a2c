"""Products of linear layers in parts of their outputs."""

import pytest
import torch
from torch import nn

from worker.model.fp8 import Fp8Linear, GatedFp8Linear, QuantizedRows, quantize_rows
from worker.model.linear_product import product_of
from worker.model.qfloat8 import Float8Linear, to_float8


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


def plain(weight):
    layer = nn.Linear(*reversed(weight.shape), bias=False).bfloat16().requires_grad_(False)
    layer.weight.copy_(weight)
    return layer


def compared(weight):
    layer = Fp8Linear(weight)
    layer.dense = 2 * weight
    return layer


@pytest.mark.parametrize(
    "build", [plain, Fp8Linear, compared, lambda weight: Float8Linear(*to_float8(weight), None)],
    ids=["plain", "fp8", "dense fp8", "qfloat8"],
)  # fmt: skip
def test_a_product_in_two_parts_has_the_bits_of_the_layer(build):
    layer, values = build(draw(48, 32)), draw(1, 7, 32)

    product = product_of(layer, values)

    parts = product.compute(stop=18), product.compute(start=18)
    assert torch.equal(torch.cat(parts, dim=-1), layer(values))
    assert product.dtype == layer(values).dtype == torch.bfloat16


def test_the_product_of_a_layer_with_a_gate_takes_gate_and_up():
    layer, gate_up = GatedFp8Linear(draw(48, 32)), draw(1, 7, 64)

    assert torch.equal(product_of(layer, gate_up).compute(), layer(gate_up))


def test_rows_that_are_quantised_already_are_multiplied_as_they_are():
    layer, (rows, scales) = Fp8Linear(draw(48, 32)), quantize_rows(draw(7, 32), None)
    quantized = QuantizedRows(rows[None], scales[None])

    product = product_of(layer, quantized)

    assert product.values is quantized.values
    assert torch.equal(product.compute(start=18), layer(quantized)[..., 18:])


def test_layers_that_compute_more_than_a_product_are_not_divided():
    with_bias, with_hook, with_input_hook = nn.Linear(4, 8), plain(draw(8, 4)), plain(draw(8, 4))
    with_hook.register_forward_hook(lambda *_: None)
    with_input_hook.register_forward_pre_hook(lambda *_: None)

    for layer in (with_bias, with_hook, with_input_hook, nn.Identity()):
        assert product_of(layer, draw(1, 7, 4)) is None
