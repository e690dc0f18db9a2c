"""Attention for compiled blocks: one kernel normalises and rotates queries and keys with the bits of torch.

Source:
    Flux2AttnProcessor and Flux2ParallelSelfAttnProcessor in diffusers' models/transformers/transformer_flux2.py.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from worker.kernels.toolchain import triton_unavailable_reason
from worker.model.rounding import RoundedRMSNorm, rounded_rms_norm

logger = logging.getLogger("flux2.worker.model")

# Channels of an attention head in every released FLUX.2; the kernel adds up rows of this length.
_WIDTH = 128

Angles = tuple[Tensor, Tensor]


@torch.library.custom_op("flux2::norm_and_rotate", mutates_args=())
def norm_and_rotate(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """Return queries or keys after their RMS norm and their rotary embedding, contiguous.

    Args:
        values: (batch, tokens, heads, channels).
        weight: (channels,).
        cosines, sines: (tokens, channels), float32.
    """
    # A kernel that the compiler fuses adds up a row in the order that is fastest for the first size it sees, and
    # another order gives other bits. This project's kernel always adds in torch's order, rounds where the uncompiled
    # modules round, and reads and writes each value once. Heads of other widths, as in the tests' models, use torch's
    # operations.
    if values.is_cuda and values.shape[-1] == _WIDTH and _kernel_matches_torch(values.device, values.shape[-2]):
        return _launch(values, weight, cosines, sines, eps)
    return _norm_and_rotate(values, weight, cosines, sines, eps)


@norm_and_rotate.register_fake
def _(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    return values.new_empty(values.shape)


def _norm_and_rotate(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    normed = rounded_rms_norm(values, weight, eps=eps)
    rotated: Tensor = apply_rotary_emb(normed, (cosines, sines), sequence_dim=1)  # type: ignore[arg-type, assignment]
    return rotated.contiguous()


def _launch(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    from worker.kernels.attention_kernel import launch

    rotated = values.new_empty(values.shape)
    with torch.cuda.device(values.device):
        launch(values if values.stride(-1) == 1 else values.contiguous(), weight, cosines, sines, eps, rotated)
    return rotated


@cache
def _kernel_matches_torch(device: torch.device, heads: int) -> bool:
    """Whether the kernel can be built and gives torch's bits."""
    # Measured, not assumed: another version of torch may add in another order.
    if triton_unavailable_reason() is not None:
        return False
    # A fixed seed: the comparison must not depend on chance.
    random = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=random)

    # A slice of a tensor that also holds keys and values, like the real input.
    values = draw(1, 500, 3 * heads, _WIDTH)[:, :, :heads]
    angles = draw(500, _WIDTH).float()
    given = values, draw(_WIDTH), angles.cos(), angles.sin(), 1e-6
    holds = torch.equal(_launch(*given), _norm_and_rotate(*given))
    if not holds:
        logger.warning("the fused norm kernel is not used, steps take longer: this torch adds up in another order")
    return holds


class JointAttention:
    """Attention of a double-stream block, which projects image and text with different weights."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None,
        image_rotary_emb: Angles,
    ) -> tuple[Tensor, Tensor]:
        """Attend over image and text, both (batch, tokens, channels), with the text first."""
        of_text = _heads(attn, encoder_hidden_states, "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"))
        of_image = _heads(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        # Rotary angles cover text and image as one sequence.
        count = of_text[0].shape[1]
        text_angles, image_angles = zip(*(part.tensor_split((count,)) for part in image_rotary_emb), strict=True)
        text = (
            _norm_and_rotate_heads(of_text[0], attn.norm_added_q, text_angles),
            _norm_and_rotate_heads(of_text[1], attn.norm_added_k, text_angles),
        )
        image = (
            _norm_and_rotate_heads(of_image[0], attn.norm_q, image_angles),
            _norm_and_rotate_heads(of_image[1], attn.norm_k, image_angles),
        )
        query, key, value = (
            torch.cat(parts, dim=1) for parts in ((text[0], image[0]), (text[1], image[1]), (of_text[2], of_image[2]))
        )
        attended = dispatch_attention_fn(query, key, value).flatten(2, 3)
        return attn.to_out[0](attended[:, count:]), attn.to_add_out(attended[:, :count])


class ParallelAttention:
    """The part of a single-stream block between its norm and its residual: attention and feed-forward in parallel.

    Args:
        gated: the last layer receives gate and up and applies the activation itself.
    """

    def __init__(self, *, gated: bool) -> None:
        self._gated = gated

    def __call__(self, attn: Any, hidden_states: Tensor, attention_mask: None, image_rotary_emb: Angles) -> Tensor:
        """Attend over (batch, tokens, channels)."""
        projected = attn.to_qkv_mlp_proj(hidden_states)
        qkv, gate_up = projected.split([3 * attn.inner_dim, 2 * attn.mlp_hidden_dim], dim=-1)
        query, key, value = qkv.unflatten(-1, (3, -1, attn.head_dim)).unbind(-3)
        query, key = (
            _norm_and_rotate_heads(part, norm, image_rotary_emb)
            for part, norm in ((query, attn.norm_q), (key, attn.norm_k))
        )
        attended = dispatch_attention_fn(query, key, value).flatten(2, 3)
        product: Tensor
        if self._gated:
            product = attn.to_out(attended, gate_up)
        else:
            product = attn.to_out(torch.cat([attended, attn.mlp_act_fn(gate_up)], dim=-1))
        return product


def _heads(attn: Any, values: Tensor, fused: str, separate: tuple[str, str, str]) -> tuple[Tensor, ...]:
    """Return queries, keys and values, (batch, tokens, heads, channels)."""
    # fp8 and qfloat8 replace the three layers one by one, so they are not fused.
    if attn.fused_projections:
        parts = getattr(attn, fused)(values).chunk(3, dim=-1)
    else:
        parts = tuple(getattr(attn, name)(values) for name in separate)
    return tuple(part.unflatten(-1, (-1, attn.head_dim)) for part in parts)


def _norm_and_rotate_heads(values: Tensor, norm: RoundedRMSNorm, angles: Angles) -> Tensor:
    rotated: Tensor = norm_and_rotate(values, norm.weight, *angles, norm.eps)
    return rotated
