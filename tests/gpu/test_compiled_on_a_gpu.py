"""On a CUDA device: compiled blocks, of the width of a real model, give the bits of the uncompiled modules."""

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from worker.model import rounding
from worker.model.compile import compile_blocks
from worker.model.fp8 import convert_to_fp8, set_float8_attention
from worker.model.fp8_attention import float8_attention_lacks
from worker.rendering.denoise import TransformerInputs, predict
from worker.rendering.latents import image_ids, text_ids

pytestmark = [
    # torch 2.11 says so of itself when it is first asked to compile.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda:0")
# Rows and columns of latents: 128x128, 512x512, 1216x832, 1024x1024, 2048x1024 pixels.
SIZES = [(8, 8), (32, 32), (76, 52), (64, 64), (128, 64)]


def build():
    """Two double and three single blocks of klein 4B's width, with weights that let roundings show."""
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=2, num_single_layers=3, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=True
        )
    rounding.match_transformer_rounding(model)
    model.to_empty(device=DEVICE).to(torch.bfloat16).requires_grad_(False).eval()
    random = torch.Generator(DEVICE).manual_seed(1)
    for name, weight in model.named_parameters():
        weight.fill_(1) if weight.ndim == 1 else weight.normal_(0, 0.03, generator=random)
        assert weight.device == DEVICE, name
    return model


@torch.no_grad()
def run(model, rows, columns):
    random = torch.Generator(DEVICE).manual_seed(rows)

    def draw(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(generator=random)

    call = TransformerInputs(
        draw(1, rows * columns, model.config.in_channels), draw(1).abs(), draw(1, 512, 7680),
        image_ids(rows, columns).to(DEVICE), text_ids(512).to(DEVICE), torch.tensor([4.0], device=DEVICE).bfloat16(),
    )  # fmt: skip
    return predict(model, call)


def test_no_bit_changes_at_any_size():
    model = build()
    rounding.fuse_qkv(model)
    expected = [run(model, *size) for size in SIZES]
    compile_blocks(model, exact=True)

    differing = [int((run(model, *size) != wanted).sum()) for size, wanted in zip(SIZES, expected, strict=True)]

    assert differing == [0] * len(SIZES)


@pytest.mark.parametrize("attention", ["bf16", "fp8"])
def test_compiled_float8_blocks_are_as_near_the_exact_ones_as_uncompiled_ones(attention):
    if attention == "fp8" and (lacks := float8_attention_lacks(DEVICE, heads=24, width=128)):
        pytest.skip(f"attention in float8 needs {lacks}")
    torch.compiler.reset()
    model = build()
    exact_steps = [run(model, *size).double() for size in SIZES]

    def errors():
        steps = [run(model, *size).double() for size in SIZES]
        return [float((step - wanted).norm() / wanted.norm()) for step, wanted in zip(steps, exact_steps, strict=True)]

    convert_to_fp8(model)
    set_float8_attention(model, enabled=attention == "fp8")
    uncompiled = errors()
    compile_blocks(model, exact=False)

    assert all(
        ours < 1.05 * theirs < 0.5 for ours, theirs in zip(errors(), uncompiled, strict=True)
    )  # weights at random let errors grow more than trained ones
