"""A stack of layers that is streamed from host memory gives the bits that it gives on the device."""

import pytest
import torch
from torch import nn

from worker.model.layer_streaming import BUFFERS, LayerStreamer
from worker.model.qfloat8 import quantize

CPU = torch.device("cpu")


class Layer(nn.Module):
    """Linear layers of several shapes and dtypes, and a buffer."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 24, dtype=torch.bfloat16)
        self.down = nn.Linear(24, 8, bias=False)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, hidden):
        if hidden.isnan().any():
            raise ValueError("not a number")
        return torch.tanh(self.down(self.up(hidden.bfloat16()).float()) + self.shift)


@pytest.fixture
def layers():
    torch.manual_seed(3)
    return nn.Sequential(*(Layer() for _ in range(7)))


def test_passes_give_the_same_bits_as_without_streaming(layers):
    inputs = [torch.randn(2, 8) for _ in range(3)]
    expected = [layers(hidden) for hidden in inputs]

    LayerStreamer(layers, device=CPU)

    for hidden, wanted in zip(inputs, expected, strict=True):
        assert torch.equal(layers(hidden), wanted)


def test_only_a_few_layers_are_on_the_device_at_once(layers):
    one = sum(-(-tensor.nbytes // 256) * 256 for tensor in (*layers[0].parameters(), *layers[0].buffers()))

    streamed = LayerStreamer(layers, device=CPU)

    assert 0 < streamed.device_bytes <= BUFFERS * one


def test_a_stack_shorter_than_the_buffers_runs(layers):
    short = layers[:2]
    hidden = torch.randn(2, 8)
    expected = short(hidden)

    LayerStreamer(short, device=CPU)

    assert torch.equal(short(hidden), expected)
    assert torch.equal(short(hidden), expected)


def test_after_an_error_in_the_middle_the_next_pass_starts_at_the_first_layer(layers):
    hidden = torch.randn(2, 8)
    expected = layers(hidden)
    LayerStreamer(layers, device=CPU)
    broken = layers[4].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ValueError("canceled")))

    with pytest.raises(ValueError, match="canceled"):
        layers(hidden)
    broken.remove()

    assert torch.equal(layers(hidden), expected)


def test_float8_layers_stream_with_their_scales(layers):
    quantize(layers, device=CPU)
    hidden = torch.randn(2, 8)
    expected = layers(hidden)

    LayerStreamer(layers, device=CPU)

    assert torch.equal(layers(hidden), expected)


def test_weights_can_be_read_and_moved_between_passes(layers):
    names = {name: tensor.clone() for name, tensor in layers.state_dict().items()}

    LayerStreamer(layers, device=CPU)
    layers(torch.randn(2, 8))

    assert all(torch.equal(tensor, names[name]) for name, tensor in layers.state_dict().items())
