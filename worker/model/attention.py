"""Attention for compiled blocks and for blocks that run on several devices.

Source:
    Flux2AttnProcessor and Flux2ParallelSelfAttnProcessor in diffusers' models/transformers/transformer_flux2.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worker.model.fp8_attention import attend_in_float8
from worker.model.fp8_rows import QuantizedRows
from worker.model.head_exchange import attend_in_group, project_and_attend_in_group
from worker.model.heads import Angles, Heads, attend, heads_to_lists, join_heads
from worker.model.linear_product import product_of


class JointAttention:
    """Attention of a double-stream block, which projects image and text with different weights.

    Attributes:
        group: name of the group of devices that hold the tokens; see `worker.model.head_exchange`. None for one device.
        in_float8: whether one device attends in float8, a group never does; the layers that follow must then be
            `worker.model.fp8`'s.
    """

    group: str | None = None
    in_float8: bool = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None,
        image_rotary_emb: Angles,
    ) -> tuple[Tensor, Tensor]:
        """Attend over image and text, both (batch, tokens, channels), with the text first."""
        of_text = _project(attn, encoder_hidden_states, "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"))
        of_image = _project(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        # Rotary angles cover text and image as one sequence.
        count = of_text[0].shape[1]
        attended = _attend(
            [
                Heads(*of_text, attn.norm_added_q.weight, attn.norm_added_k.weight),
                Heads(*of_image, attn.norm_q.weight, attn.norm_k.weight),
            ],
            image_rotary_emb,
            eps=attn.norm_q.eps,
            group=self.group,
            in_float8=self.in_float8,
        )
        text_rows, image_rows = _split_tokens(attended, count)
        return attn.to_out[0](image_rows), attn.to_add_out(text_rows)


class ParallelAttention:
    """The part of a single-stream block between its norm and its residual: attention and feed-forward in parallel.

    Args:
        gated: the last layer receives gate and up and applies the activation itself.

    Attributes:
        group, in_float8: see `JointAttention`.
    """

    group: str | None = None
    in_float8: bool = False

    def __init__(self, *, gated: bool) -> None:
        self._gated = gated

    def __call__(self, attn: Any, hidden_states: Tensor, attention_mask: None, image_rotary_emb: Angles) -> Tensor:
        """Attend over (batch, tokens, channels)."""
        attended, gate_up = self._project_and_attend(attn, hidden_states, image_rotary_emb)
        product: Tensor
        if self._gated:
            product = attn.to_out(attended, gate_up)
        else:
            assert isinstance(attended, Tensor)
            product = attn.to_out(torch.cat([attended, attn.mlp_act_fn(gate_up)], dim=-1))
        return product

    def _project_and_attend(
        self, attn: Any, hidden_states: Any, angles: Angles
    ) -> tuple[Tensor | QuantizedRows, Tensor]:
        """Return the attention and the feed-forward's gate and up, both (batch, tokens, channels)."""
        norms, eps, qkv_rows = (attn.norm_q.weight, attn.norm_k.weight), attn.norm_q.eps, 3 * attn.inner_dim
        # The devices of a group exchange heads while they compute gate and up.
        product = None if self.group is None else product_of(attn.to_qkv_mlp_proj, hidden_states)
        if product is not None:
            of_all, gate_up = project_and_attend_in_group(*product, qkv_rows, *norms, *angles, eps, self.group)
            return of_all.flatten(2, 3), gate_up
        qkv, gate_up = attn.to_qkv_mlp_proj(hidden_states).split([qkv_rows, 2 * attn.mlp_hidden_dim], dim=-1)
        attended = _attend([Heads.of(qkv, *norms)], angles, eps=eps, group=self.group, in_float8=self.in_float8)
        return attended, gate_up


def replace_attention(transformer: Any) -> None:
    """Let a transformer's blocks attend with these classes, unless they do so already."""
    for block in transformer.transformer_blocks:
        if not isinstance(block.attn.processor, JointAttention):
            block.attn.set_processor(JointAttention())
    for block in transformer.single_transformer_blocks:
        if not isinstance(block.attn.processor, ParallelAttention):
            block.attn.set_processor(ParallelAttention(gated=False))


def _project(attn: Any, values: Tensor, fused: str, separate: tuple[str, str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (batch, tokens, heads, channels)."""
    # fp8 and qfloat8 replace the three layers one by one, so they are not fused.
    if attn.fused_projections:
        parts = getattr(attn, fused)(values).chunk(3, dim=-1)
    else:
        parts = tuple(getattr(attn, name)(values) for name in separate)
    query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in parts)
    return query, key, value


def _attend(
    parts: Sequence[Heads], angles: Angles, *, eps: float, group: str | None, in_float8: bool
) -> Tensor | QuantizedRows:
    """Return (batch, tokens, heads * channels) for the tokens of this device."""
    if group is not None:
        attended: Tensor = attend_in_group(*heads_to_lists(parts), *angles, eps, group)
        return attended.flatten(2, 3)
    if in_float8:
        return attend_in_float8(parts, angles, eps)
    return attend(*join_heads(parts, angles, eps)).flatten(2, 3)


def _split_tokens(attended: Tensor | QuantizedRows, count: int) -> Sequence[Tensor | QuantizedRows]:
    """Return the first `count` tokens, and the others."""
    if isinstance(attended, QuantizedRows):
        return [QuantizedRows(*rows) for rows in zip(*(_split_tokens(part, count) for part in attended), strict=True)]
    return attended[:, :count], attended[:, count:]
