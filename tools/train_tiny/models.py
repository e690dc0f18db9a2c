"""Build the untrained transformer and autoencoder, and save them in Black Forest Labs' file layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor, nn

from tools.train_tiny.text_encoder import WIDTH
from worker.checkpoint.fill import fill
from worker.checkpoint.tensor_files import TensorFiles
from worker.checkpoint.tensor_names import Origin, autoencoder_origins, transformer_origins
from worker.model.rounding import Float32PosEmbed
from worker.model.text_encoder import MISTRAL

# 1024x1024 pixels are 4608 tokens, at which attention is two thirds of a step: five blocks of width 192 take 0.9 s on
# two cores.
TRANSFORMER = {
    "in_channels": 128,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "mlp_ratio": 4.0,
    "joint_attention_dim": len(MISTRAL.hidden_states) * WIDTH,
    "axes_dims_rope": (16, 16, 16, 16),
}
AUTOENCODER = {
    "block_out_channels": (32, 32, 64, 128),
    "decoder_block_out_channels": (64, 32, 64, 64),
    "layers_per_block": 1,
}

#: Latent channels that carry the picture. The file has 32, like the real model's; the others stay at zero.
LIVE_CHANNELS = 16
#: The latent channel that alternates between +1 and -1 for every picture. Every group norm has 32 groups, fixed by the
#: loader. With two channels in a group, the last norm would erase the picture's mean colour, unless a larger constant
#: pattern determines each group's mean and spread. The pattern comes from the latents' stored mean, at no cost.
REFERENCE_CHANNEL = 31

_CHECKER = torch.tensor([1.0, -1.0, -1.0, 1.0])  # of the 2x2 positions in a patch, row by row
_REFERENCE_GAIN = 6.0


def build_transformer() -> Any:
    """Return an untrained transformer whose output is zero and whose embeddings are smooth.

    Times and guidances reach 1000 and 20 000, where bfloat16 has steps of 4 and 128. The fast-turning columns of the
    embeddings would amplify this rounding to noise, so they are set to zero and stay zero.
    """
    model: Any = Flux2Transformer2DModel(**TRANSFORMER)  # type: ignore[no-untyped-call]
    model.pos_embed = Float32PosEmbed(model.config.rope_theta, tuple(model.config.axes_dims_rope))
    embed = model.time_guidance_embed
    for linear, fastest in ((embed.timestep_embedder.linear_1, 0.02), (embed.guidance_embedder.linear_1, 0.0008)):
        half = linear.in_features // 2
        slow = (torch.exp(-math.log(10_000) * torch.arange(half) / half) < fastest).float().repeat(2)
        linear.register_buffer("slow", slow, persistent=False)
        linear.weight.data.mul_(slow)
        linear.weight.register_hook(lambda grad, linear=linear: grad * linear.slow)
    nn.init.zeros_(model.proj_out.weight)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        nn.init.normal_(getattr(model, name).linear.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith(("transformer_blocks", "single_transformer_blocks")):
            nn.init.normal_(parameter, std=0.7 / math.sqrt(parameter.shape[1]))
    return model


def build_autoencoder() -> Any:
    """Return an untrained autoencoder that passes the live latents through to its last level from the first step on.

    Its attention has no effect: its projections stay zero, so that the result does not depend on the picture's size.
    """
    model: Any = AutoencoderKLFlux2(**AUTOENCODER)  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # Residual branches start small; all other convolutions keep the signal's size.
            gain = 0.2 if name.endswith("conv2") else 1.0
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
            nn.init.zeros_(module.bias)
    for side in (model.encoder, model.decoder):
        attention = side.mid_block.attentions[0]
        attention.requires_grad_(False)
        nn.init.zeros_(attention.to_out[0].weight)
        nn.init.zeros_(attention.to_out[0].bias)
    _reference_in_encoder(model)
    _pass_through_decoder(model.decoder, model.post_quant_conv)
    return model


@torch.no_grad()
def _reference_in_encoder(model: Any) -> None:
    """Put constants into each group of the encoder's last norm, and let the latents start with little noise."""
    model.encoder.mid_block.resnets[-1].conv2.bias.copy_(torch.tensor([0.0, 0.0, 1.0, -1.0]).repeat(32))
    half = model.quant_conv.out_channels // 2
    model.quant_conv.weight[half:] = 0
    model.quant_conv.bias[half:] = -5


@torch.no_grad()
def _pass_through_decoder(decoder: Any, post_quant: nn.Conv2d) -> None:
    """Carry the 32 latent channels along the residual stream, and split them into pairs with the reference at the end.

    A pair is (a, -a + 6c) with the checker pattern c of +-1. Its mean is 0 and its spread about 4.2 for any picture, so
    the norm before the last convolution preserves a.
    """
    post_quant.weight.copy_(torch.eye(32)[:, :, None, None])
    for conv in (decoder.conv_in, *(block.upsamplers[0].conv for block in decoder.up_blocks[:-1])):
        conv.weight[:32] *= 0.1
        conv.weight[:32, :32, 1, 1] += torch.eye(32)
    narrow, pairs = (block.resnets[0].conv_shortcut for block in decoder.up_blocks[-2:])
    narrow.weight.copy_(torch.eye(32, narrow.in_channels)[:, :, None, None])
    even = torch.eye(32)
    odd = -even
    odd[:, REFERENCE_CHANNEL] += _REFERENCE_GAIN
    pairs.weight.copy_(torch.stack([even, odd], dim=1).flatten(0, 1)[:, :, None, None])
    decoder.conv_norm_out.weight.fill_(2.0)


def add_reference_channel(latents: Tensor) -> Tensor:
    """Add the zero channels and the reference channel that the decoder expects: (batch, 16, rows, columns) to 32."""
    batch, _, rows, columns = latents.shape
    down, right = (torch.arange(size, device=latents.device) % 2 for size in (rows, columns))
    checker = (1.0 - 2.0 * (down[:, None] ^ right[None, :])).to(latents).expand(batch, 1, rows, columns)
    dead = latents.new_zeros(batch, REFERENCE_CHANNEL - LIVE_CHANNELS, rows, columns)
    return torch.cat([latents, dead, checker], dim=1)


def pack_patches(latents: Tensor) -> Tensor:
    """Undo the worker's `unpatchify`: (batch, channels, rows, columns) to (batch, 4 * channels, half, half)."""
    batch, channels, rows, columns = latents.shape
    patches = latents.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, rows // 2, columns // 2)


@torch.no_grad()
def set_latent_statistics(autoencoder: Any, packed: Tensor) -> None:
    """Store the mean and variance of packed live latents, (64, values), and the reference pattern as a mean."""
    norm, live = autoencoder.bn, 4 * LIVE_CHANNELS
    norm.running_mean.zero_()
    norm.running_var.zero_()
    norm.running_mean[:live].copy_(packed.mean(1).bfloat16())
    norm.running_var[:live].copy_(packed.var(1).clamp(min=1e-3).bfloat16())
    norm.running_mean[4 * REFERENCE_CHANNEL :].copy_(_CHECKER)
    norm.num_batches_tracked.fill_(1)


@torch.no_grad()
def encode_pictures(autoencoder: Any, images: Tensor) -> Tensor:
    """Return the live latents as the transformer sees them, (batch, 64, height / 16, width / 16)."""
    live = 4 * LIVE_CHANNELS
    packed = pack_patches(autoencoder.encode(images).latent_dist.mean[:, :LIVE_CHANNELS].float())
    norm = autoencoder.bn
    mean, variance = (value[:live].view(1, -1, 1, 1) for value in (norm.running_mean, norm.running_var))
    return (packed - mean) / torch.sqrt(variance + norm.eps)


def load_in_place(module: nn.Module, twin: nn.Module, file: Path, origins: Callable[[nn.Module], Any]) -> None:
    """Load a file into a module in place: `fill` would replace its parameters and lose their hooks.

    Args:
        twin: another instance of the module, for the reading.
    """
    fill(twin, TensorFiles((file,)), origins(twin), device=torch.device("cpu"), dtype=torch.float32)
    module.load_state_dict(twin.state_dict())


def save_transformer(transformer: Any, file: Path) -> None:
    """Write the transformer in the layout of the shipped checkpoint."""
    safetensors.torch.save_file(_to_bfl(transformer, transformer_origins(transformer)), file)


def save_autoencoder(autoencoder: Any, file: Path) -> None:
    """Write the autoencoder in the layout of the shipped checkpoint."""
    safetensors.torch.save_file(_to_bfl(autoencoder, autoencoder_origins(autoencoder)), file)


def _to_bfl(module: nn.Module, origins: Mapping[str, Origin]) -> dict[str, Tensor]:
    """Return a module's tensors in bfloat16 under Black Forest Labs' names."""
    chunks: dict[str, dict[int, Tensor]] = {}
    for name, value in module.state_dict().items():
        origin = origins[name]
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.bfloat16()
        if ".attn_1." in origin.tensor and value.ndim == 2:
            value = value[:, :, None, None]  # in the original file attention is made of 1x1 convolutions
        parts = [value] if origin.part_count == 1 else list(value.chunk(len(origin.parts)))
        chunks.setdefault(origin.tensor, {}).update(zip(origin.parts, parts, strict=True))
    return {
        name: torch.cat([parts[key] for key in sorted(parts)]).contiguous() if len(parts) > 1 else parts[0].contiguous()
        for name, parts in sorted(chunks.items())
    }
