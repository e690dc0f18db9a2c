"""Multiply in float8 in the blocks' linear layers; each row of activations and of weights has its own scale.

On a Hopper GPU this takes half the time and half the memory of bfloat16, and gives other bits. When a worker starts, it
measures the distance of one step from the same step in bfloat16, and reports it with every image. The layers outside
the blocks stay in bfloat16, and so does attention unless `worker.model.fp8_attention` computes it. Adapters are merged
into the bfloat16 base weights, which are then quantised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Modulation
from torch import Tensor, nn

from worker.model.attention import JointAttention, ParallelAttention
from worker.model.fp8_rows import QuantizedRows, join_rows, norm_rows, quantize_into, quantize_rows
from worker.model.heads import Angles
from worker.model.linear_product import LinearProduct
from worker.model.qfloat8 import FLOAT8


class Fp8Linear(nn.Module):
    """A linear layer without bias whose `weight` is (out, in) in float8, with a scale for each row.

    Attributes:
        dense: a bfloat16 weight to multiply by instead, during a comparison; otherwise None.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dense: Tensor | None = None
        self.weight = nn.Parameter(torch.empty_like(weight, dtype=FLOAT8), requires_grad=False)
        scale = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        self.register_buffer(
            "scale", scale, persistent=False
        )  # not persistent, so the state has the plain layer's names
        self._dtype = weight.dtype
        self.quantize_from(weight)

    @torch.no_grad()
    def quantize_from(self, dense: Tensor) -> None:
        """Set the weight to `dense`, (out, in), rounded to float8."""
        quantize_into(dense, None, self.weight, self.scale)  # type: ignore[arg-type]

    def forward(self, plain: Tensor | QuantizedRows | None, gate_up: Tensor | None = None) -> Tensor:
        """Multiply ``[plain, silu(gate) * up]``, (batch, tokens, in); either part may be None."""
        return self.product(plain, gate_up).compute()

    def product(self, plain: Tensor | QuantizedRows | None, gate_up: Tensor | None = None) -> LinearProduct:
        """Return the factors of `forward`'s product; quantises the input unless it is quantised."""
        # The kernel that quantises also computes norms, modulation and the activation, in float32.
        plain_scales = None
        if isinstance(plain, QuantizedRows):
            plain, plain_scales = plain
        if self.dense is not None:
            joined = join_rows(plain, gate_up, plain_scales=plain_scales)
            return LinearProduct(joined.to(self._dtype), self.dense, self._dtype)
        if plain is not None and plain_scales is not None and gate_up is None:
            return self._scaled(plain, plain_scales)
        like = gate_up if plain is None else plain
        assert like is not None
        flat = (None if part is None else part.flatten(0, -2) for part in (plain, gate_up, plain_scales))
        rows, scales = quantize_rows(*flat)
        return self._scaled(rows.view(*like.shape[:-1], -1), scales.view(*like.shape[:-1], 1))

    def _scaled(self, values: Tensor, scales: Tensor) -> LinearProduct:
        scale: Tensor = self.scale  # type: ignore[assignment]
        return LinearProduct(values, self.weight, self._dtype, scales, scale)


class GatedFp8Linear(Fp8Linear):
    """A float8 layer whose only input is gate and up, concatenated."""

    def forward(self, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        return self.product(gate_up).compute()

    def product(self, gate_up: Tensor) -> LinearProduct:  # type: ignore[override]
        return super().product(None, gate_up)


def convert_to_fp8(transformer: Any) -> None:
    """Replace the linear layers in the blocks of a Flux2Transformer2DModel; on the meta device, without any values."""
    for block in transformer.transformer_blocks:
        for path, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                # The feed-forward's second layer applies the activation itself, in the kernel that quantises.
                gated = path.endswith("linear_out")
                block.set_submodule(path, (GatedFp8Linear if gated else Fp8Linear)(layer.weight))
        for feed_forward in (block.ff, block.ff_context):
            feed_forward.act_fn = nn.Identity()
        block.attn.set_processor(JointAttention())
        block.forward = MethodType(_double_block, block)
    for block in transformer.single_transformer_blocks:
        attn = block.attn
        attn.to_qkv_mlp_proj = Fp8Linear(attn.to_qkv_mlp_proj.weight)
        attn.to_out = Fp8Linear(attn.to_out.weight)
        attn.set_processor(ParallelAttention(gated=True))
        block.forward = MethodType(_single_block, block)


def _double_block(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb_mod_img: Tensor,
    temb_mod_txt: Tensor,
    image_rotary_emb: Angles,
    joint_attention_kwargs: None,
) -> tuple[Tensor, Tensor]:
    """Run Flux2TransformerBlock with norm and quantisation in one kernel."""
    image, text = (Flux2Modulation.split(modulation, 2) for modulation in (temb_mod_img, temb_mod_txt))
    of_image, of_text = self.attn(
        hidden_states=_modulated(self.norm1, hidden_states, image[0]),
        encoder_hidden_states=_modulated(self.norm1_context, encoder_hidden_states, text[0]),
        image_rotary_emb=image_rotary_emb,
    )
    hidden_states = hidden_states + image[0][2] * of_image
    hidden_states = hidden_states + image[1][2] * self.ff(_modulated(self.norm2, hidden_states, image[1]))
    states = encoder_hidden_states + text[0][2] * of_text
    return states + text[1][2] * self.ff_context(_modulated(self.norm2_context, states, text[1])), hidden_states


def _single_block(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: None,
    temb_mod: Tensor,
    image_rotary_emb: Angles,
    joint_attention_kwargs: None,
) -> Tensor:
    """Run Flux2SingleTransformerBlock with norm and quantisation in one kernel."""
    ((*modulation, gate),) = Flux2Modulation.split(temb_mod, 1)
    normed = _modulated(self.norm, hidden_states, modulation)
    added: Tensor = gate * self.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb)
    return hidden_states + added


def _modulated(norm: nn.LayerNorm, hidden_states: Tensor, modulation: Sequence[Tensor]) -> Tensor | QuantizedRows:
    """Return a layer's input after norm and modulation; quantised in compiled code, dense otherwise."""
    # Uncompiled code runs for comparisons, some of them with dense weights, which multiply dense input.
    shift, scale, *_ = modulation
    if torch.compiler.is_compiling():
        return QuantizedRows(*norm_rows(hidden_states, shift, scale, norm.eps))
    normed: Tensor = (1 + scale) * norm(hidden_states) + shift
    return normed


def set_float8_attention(transformer: Any, *, enabled: bool) -> None:
    """Let a transformer with float8 weights attend in float8, or in bfloat16; see `worker.model.fp8_attention`."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.processor.in_float8 = enabled


@contextmanager
def attention_in_bfloat16(transformer: Any) -> Iterator[None]:
    """Let a transformer attend in bfloat16 inside the `with` block."""
    if not attends_in_float8(transformer):
        yield
        return
    set_float8_attention(transformer, enabled=False)
    try:
        yield
    finally:
        set_float8_attention(transformer, enabled=True)


def attends_in_float8(transformer: Any) -> bool:
    """Whether a transformer attends in float8."""
    attends: bool = getattr(transformer.single_transformer_blocks[0].attn.processor, "in_float8", False)
    return attends


def fp8_layers(transformer: nn.Module) -> dict[str, Fp8Linear]:
    """Return the float8 layers of a transformer, by the names of their weights."""
    return {f"{path}.weight": layer for path, layer in transformer.named_modules() if isinstance(layer, Fp8Linear)}


@contextmanager
def dense_weights(transformer: nn.Module, fetch: Callable[[str], Tensor]) -> Iterator[None]:
    """Multiply by the bfloat16 weights that `fetch` returns for their names, inside the `with` block."""
    # Each weight is fetched before its layer runs and released after it: the device never holds all of them.
    handles = []
    for name, layer in fp8_layers(transformer).items():

        def before(layer: Any, *_: Any, name: str = name) -> None:
            layer.dense = fetch(name)

        def after(layer: Any, *_: Any) -> None:
            layer.dense = None

        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
