"""Multiply in float8 in the blocks' linear layers: each row of activations and of weights has a scale of its own.

On a Hopper GPU that takes half the time of bfloat16 and half the memory, and gives other bits: how far a step is from
the exact one is measured when a worker starts and told with every image. Attention, norms, modulation and what lies
outside of the blocks stay in bfloat16. Adapters are merged into the clean bfloat16 weights, which are then quantised
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional

from worker.pipeline.quantize import FLOAT8

_LARGEST = torch.finfo(FLOAT8).max
# Of a scale: a row of zeros has no largest value to divide by.
_TINY = 1e-12


@torch.library.custom_op("flux2::quantize_rows", mutates_args=())
def quantize_rows(values: Tensor, gated: bool) -> tuple[Tensor, Tensor]:
    """Return float8 values, and for each row the scale, float32, that puts its largest value on float8's largest.

    Args:
        values: (rows, columns); rows may lie apart.
        gated: whether the values are ``silu(first half) * second half`` of each row; they are then half as many.
    """
    rows, columns = values.shape[0], values.shape[1] // (2 if gated else 1)
    if not values.is_cuda:
        return _quantize_rows(_gated(values) if gated else values)
    from worker.pipeline.fast_kernel import launch

    quantized = torch.empty(rows, columns, dtype=FLOAT8, device=values.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=values.device)
    launch(values, quantized, scales, gated=gated)
    return quantized, scales


@quantize_rows.register_fake
def _(values: Tensor, gated: bool) -> tuple[Tensor, Tensor]:
    rows, columns = values.shape[0], values.shape[1] // (2 if gated else 1)
    return values.new_empty(rows, columns, dtype=FLOAT8), values.new_empty(rows, 1, dtype=torch.float32)


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    wide = values.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp_min(_TINY)
    return (wide / scales).clamp(-_LARGEST, _LARGEST).to(FLOAT8), scales


def _gated(values: Tensor) -> Tensor:
    gate, up = values.float().chunk(2, dim=-1)
    return functional.silu(gate) * up


class FastLinear(nn.Module):
    """A linear layer without bias whose `weight` is (out, in) in float8, times a scale for each row.

    Attributes:
        dense: the weight in bfloat16 while what it gives is compared with that; else None.
    """

    gated = False

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dense: Tensor | None = None
        self.weight = nn.Parameter(torch.empty_like(weight, dtype=FLOAT8), requires_grad=False)
        scale = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        self.register_buffer("scale", scale, persistent=False)  # so that names stay those of the plain layer
        self.take(weight)

    @torch.no_grad()
    def take(self, dense: Tensor) -> None:
        """Become this weight, (out, in)."""
        quantized, scale = quantize_rows(dense, gated=False)
        self.weight.copy_(quantized)
        self.scale.copy_(scale)  # type: ignore[operator]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.dense is not None:
            return functional.linear(_plain(hidden_states, gated=self.gated), self.dense)
        return self._product(hidden_states, self.weight, gated=self.gated)

    def _product(self, values: Tensor, weight: Tensor, *, gated: bool) -> Tensor:
        rows, scales = quantize_rows(values.flatten(0, -2), gated)
        scale: Tensor = self.scale  # type: ignore[assignment]
        if not values.is_cuda:
            product = functional.linear(rows.float() * scales, weight.float() * scale).to(values.dtype)
        else:
            product = torch._scaled_mm(
                rows, weight.t(), scale_a=scales, scale_b=scale.t(), out_dtype=values.dtype, use_fast_accum=True
            )
        return product.view(*values.shape[:-1], -1)


class FastGatedLinear(FastLinear):
    """One whose input is ``silu(gate) * up``, and is given gate and up side by side."""

    gated = True


class FastParallelOut(FastLinear):
    """The last layer of a single-stream block, which multiplies by the attention's output and the MLP's side by side.

    Each half's rows have a scale of their own, so they are two products. Float8 values of the first columns lie before
    those of the others in `weight`, whose values are therefore not in the order of its shape.

    Args:
        width: of the attention's output.
    """

    def __init__(self, weight: Tensor, *, width: int) -> None:
        self._width = width
        super().__init__(weight)

    def _halves(self) -> tuple[Tensor, Tensor]:
        rows, columns = self.weight.shape
        flat = self.weight.view(-1)
        return flat[: rows * self._width].view(rows, -1), flat[rows * self._width :].view(rows, columns - self._width)

    @torch.no_grad()
    def take(self, dense: Tensor) -> None:
        quantized, scale = quantize_rows(dense, gated=False)
        for half, values in zip(
            self._halves(), quantized.split([self._width, len(dense[0]) - self._width], 1), strict=True
        ):
            half.copy_(values)
        self.scale.copy_(scale)  # type: ignore[operator]

    def forward(self, attended: Tensor, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        if self.dense is not None:
            return functional.linear(torch.cat([attended, _plain(gate_up, gated=True)], dim=-1), self.dense)
        first, second = self._halves()
        return self._product(attended, first, gated=False) + self._product(gate_up, second, gated=True)


class _ParallelAttention:
    """What a single-stream block does between its norm and its residual, with the activation left to the last layer.

    Source:
        Flux2ParallelSelfAttnProcessor in diffusers' models/transformers/transformer_flux2.py.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        """Attend over (batch, tokens, channels)."""
        projected = attn.to_qkv_mlp_proj(hidden_states)
        qkv, gate_up = projected.split([3 * attn.inner_dim, 2 * attn.mlp_hidden_dim], dim=-1)
        query, key, value = qkv.unflatten(-1, (3, -1, attn.head_dim)).unbind(-3)
        query, key = (
            cast("Tensor", apply_rotary_emb(part, image_rotary_emb, sequence_dim=1))
            for part in (attn.norm_q(query), attn.norm_k(key))
        )
        attended = dispatch_attention_fn(query, key, value, attn_mask=attention_mask).flatten(2, 3)
        product: Tensor = attn.to_out(attended, gate_up)
        return product


def make_fast(transformer: Any, *, device: torch.device) -> None:
    """Replace the linear layers in the blocks of a Flux2Transformer2DModel and move it to the device.

    One by one: the device never holds the whole original, unless it lies there.
    """
    for block in transformer.transformer_blocks:
        for path, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                gated = path.endswith("linear_out")
                block.set_submodule(path, (FastGatedLinear if gated else FastLinear)(layer.weight.to(device)))
        for feed_forward in (block.ff, block.ff_context):
            feed_forward.act_fn = nn.Identity()
    for block in transformer.single_transformer_blocks:
        attn = block.attn
        attn.to_qkv_mlp_proj = FastLinear(attn.to_qkv_mlp_proj.weight.to(device))
        attn.to_out = FastParallelOut(attn.to_out.weight.to(device), width=attn.inner_dim)
        attn.set_processor(_ParallelAttention())
    transformer.to(device)


def fast_layers(transformer: nn.Module) -> dict[str, FastLinear]:
    """Return the layers that `make_fast` made, by the names of their weights."""
    return {f"{path}.weight": layer for path, layer in transformer.named_modules() if isinstance(layer, FastLinear)}


@contextmanager
def dense_weights(transformer: nn.Module, fetch: Callable[[str], Tensor]) -> Iterator[None]:
    """Multiply by the weights that `fetch` returns for their names meanwhile, each for as long as it is needed."""
    handles = []
    for name, layer in fast_layers(transformer).items():

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


def _plain(values: Tensor, *, gated: bool) -> Tensor:
    return _gated(values).to(values.dtype) if gated else values
