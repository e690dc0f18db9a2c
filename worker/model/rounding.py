"""Make diffusers' FLUX.2 modules round where AI Toolkit's modules round.

In float32 the two already agree (1e-7). In bfloat16 a whole image differs by 4e-3, because four small modules round at
other places. These functions replace the four modules; on the same kernels the results are then equal bit for bit.

Source:
    extensions_built_in/diffusion_models/flux2/src/model.py and autoencoder.py of https://github.com/ostris/ai-toolkit
    at 27a03a91.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class RoundedRMSNorm(nn.Module):
    """RMS norm that rounds to the input's dtype before it multiplies by the weight; torch rounds only afterwards."""

    def __init__(self, weight: nn.Parameter, *, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rounded_rms_norm(hidden_states, self.weight, eps=self.eps)


def rounded_rms_norm(values: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Return `values` normalised over the last dimension; see `RoundedRMSNorm`."""
    wide = values.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse).to(values.dtype) * weight


class Float32PosEmbed(nn.Module):
    """Rotary angles computed in float32; diffusers computes them in float64."""

    def __init__(self, theta: int, axes_dim: tuple[int, ...]) -> None:
        super().__init__()
        self.theta = theta
        self.axes_dim = axes_dim

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each (tokens, head_dim), of (tokens, axes) positions."""
        angles = torch.cat([self._angles(ids[:, axis], dim) for axis, dim in enumerate(self.axes_dim)], dim=-1)
        angles = angles.repeat_interleave(2, dim=-1)  # neighbouring channels share an angle
        return angles.cos(), angles.sin()

    def _angles(self, positions: Tensor, dim: int) -> Tensor:
        exponents = torch.arange(0, dim, 2, device=positions.device) / dim  # float32
        return positions[:, None].float() * (1.0 / self.theta**exponents)


class Swish(nn.Module):
    """x * sigmoid(x), rounded after the sigmoid; torch's SiLU rounds once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * torch.sigmoid(hidden_states)


class ConvAttnProcessor:
    """The autoencoder's attention with 1x1 convolutions, which sum in another order than linear layers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend over the pixels of (batch, channels, height, width); the last three arguments are always None."""
        normed = attn.group_norm(hidden_states)
        query, key, value = (_pixels(_conv(normed, linear)) for linear in (attn.to_q, attn.to_k, attn.to_v))
        attended = functional.scaled_dot_product_attention(query, key, value)
        batch, channels, height, width = hidden_states.shape
        # Channels last in memory, as in AI Toolkit: the layout decides which kernel the convolution uses.
        image = attended.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return hidden_states + _conv(image, attn.to_out[0])


def match_transformer_rounding(transformer: Any) -> None:
    """Replace the norms of queries and keys and the rotary embedding of a Flux2Transformer2DModel."""
    config = transformer.config
    transformer.pos_embed = Float32PosEmbed(config.rope_theta, tuple(config.axes_dims_rope))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            if hasattr(block.attn, name):
                norm = getattr(block.attn, name)
                setattr(block.attn, name, RoundedRMSNorm(norm.weight, eps=norm.eps))


class FusedLinear(nn.Module):
    """A linear layer over the rows of several other layers' weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # Not a parameter, so that the module's state keeps diffusers' names.
        self.weight = weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        return functional.linear(hidden_states, self.weight)


def fuse_qkv(transformer: Any) -> None:
    """Multiply by the query, key and value weights of each double block at once, as AI Toolkit does."""
    # In float32 on a GPU, three products use other kernels than one, which shows in the last bits.
    for block in transformer.transformer_blocks:
        for product, names in _FUSED.items():
            setattr(block.attn, product, _fuse(*(getattr(block.attn, name) for name in names)))
        block.attn.fused_projections = True


def fused_product(transformer: nn.Module, parameter: str) -> FusedLinear | None:
    """Return the fused layer that holds this parameter's rows; None if the parameter's layer runs by itself."""
    path, _, layer = parameter.removesuffix(".weight").rpartition(".")
    for product, names in _FUSED.items():
        shared = getattr(transformer.get_submodule(path), product, None)
        if layer in names and isinstance(shared, FusedLinear):
            return shared
    return None


# The fused layers of a double block's attention, and the layers whose weights they join.
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


def _fuse(*layers: nn.Linear) -> FusedLinear:
    whole = torch.cat([layer.weight.detach() for layer in layers])
    # The layers' weights become views of its rows, so an adapter that is merged into one of them in place takes effect.
    for layer, rows in zip(layers, whole.chunk(len(layers)), strict=True):
        layer.weight = nn.Parameter(rows, requires_grad=False)
    return FusedLinear(whole)


def match_autoencoder_rounding(autoencoder: Any) -> None:
    """Replace the activations and the attention of an AutoencoderKLFlux2."""
    for module in list(autoencoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(module, name, Swish())
    for side in (autoencoder.encoder, autoencoder.decoder):
        side.mid_block.attentions[0].set_processor(ConvAttnProcessor())


def _conv(hidden_states: Tensor, linear: nn.Linear) -> Tensor:
    return functional.conv2d(hidden_states, linear.weight[:, :, None, None], linear.bias)


def _pixels(image: Tensor) -> Tensor:
    """Return (batch, channels, height, width) as one attention head, (batch, 1, height * width, channels)."""
    return image.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
