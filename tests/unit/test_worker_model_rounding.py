"""The four places where AI Toolkit and diffusers round differently; each example is worked by hand in bfloat16."""

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn import functional

from worker.model.rounding import ConvAttnProcessor, Float32PosEmbed, RoundedRMSNorm, Swish


def test_the_norm_rounds_before_it_multiplies_by_the_weight():
    # 3 / sqrt((1 + 9) / 2) = 1.34164, in bfloat16 1.34375; times 1.015625 is 1.36475, in bfloat16 1.3671875.
    # Rounded once, 1.34164 * 1.015625 = 1.36260 would be 1.359375.
    weight = nn.Parameter(torch.full((2,), 1.015625, dtype=torch.bfloat16))
    hidden_states = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)

    normed = RoundedRMSNorm(weight, eps=1e-6)(hidden_states)

    assert normed[1].item() == 1.3671875
    assert functional.rms_norm(hidden_states, (2,), weight, 1e-6)[1].item() == 1.359375


def test_the_activation_rounds_after_the_sigmoid():
    # sigmoid(0.625) = 0.651355, in bfloat16 0.65234375; times 0.625 is 0.407715, in bfloat16 0.408203125.
    # Rounded once, 0.625 * 0.651355 = 0.407097 would be 0.40625.
    hidden_states = torch.tensor(0.625, dtype=torch.bfloat16)

    assert Swish()(hidden_states).item() == 0.408203125
    assert functional.silu(hidden_states).item() == 0.40625


def test_rotary_angles_are_computed_in_float32():
    ids = torch.tensor([[0, 4095, 0, 511]])

    cosines, sines = Float32PosEmbed(2000, (8, 8, 8, 8))(ids)

    frequencies = 1 / np.float32(2000) ** np.array([0, 0.25, 0.5, 0.75], dtype=np.float32)
    angles = np.concatenate([position * frequencies for position in np.float32(ids[0].numpy())]).repeat(2)
    assert cosines.dtype == sines.dtype == torch.float32
    np.testing.assert_allclose(cosines[0], np.cos(angles.astype(np.float64)), atol=1e-4)
    np.testing.assert_allclose(sines[0], np.sin(angles.astype(np.float64)), atol=1e-4)


def test_attention_by_convolutions_is_the_same_attention(components):
    attention = components("fp32").autoencoder.decoder.mid_block.attentions[0]
    image = torch.randn(2, 32, 4, 6, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        by_convolutions = ConvAttnProcessor()(attention, image)
        by_linear_layers = AttnProcessor2_0()(attention, image)

    torch.testing.assert_close(by_convolutions, by_linear_layers, atol=1e-5, rtol=1e-5)


def test_loaded_modules_have_all_four_replacements(components):
    model = components("bf16")

    norms = {type(module) for name, module in model.transformer.named_modules() if "attn.norm_" in name}
    attention = [side.mid_block.attentions[0] for side in (model.autoencoder.encoder, model.autoencoder.decoder)]
    assert norms == {RoundedRMSNorm}
    assert type(model.transformer.pos_embed) is Float32PosEmbed
    assert not [module for module in model.autoencoder.modules() if isinstance(module, nn.SiLU)]
    assert {type(module.processor) for module in attention} == {ConvAttnProcessor}


def test_query_key_and_value_are_rows_of_one_weight_that_merging_reaches(components):
    attn = components("fp32").transformer.transformer_blocks[0].attn
    tokens = torch.randn(1, 3, attn.to_q.in_features, generator=torch.Generator().manual_seed(0))
    before = attn.to_qkv(tokens)

    with torch.no_grad():
        attn.to_k.weight.mul_(2)

    query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
    assert torch.equal(key, attn.to_k(tokens))
    assert torch.equal(torch.cat([query, value], dim=-1), torch.cat(before.chunk(3, dim=-1)[::2], dim=-1))
    with torch.no_grad():
        attn.to_k.weight.mul_(0.5)
