"""Multiply in float8 in the blocks' linear layers: each row of activations and of weights has a scale of its own.

On a Hopper GPU that takes half the time of bfloat16 and half the memory, and gives other bits: how far a step is from
the exact one is measured when a worker starts and told with every image. Attention, norms, modulation and what lies
outside of the blocks stay in bfloat16. Adapters are merged into the clean bfloat16 weights, which are then quantised
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.pipeline.attention import JointAttention, ParallelAttention
from worker.pipeline.quantize import FLOAT8

_LARGEST = torch.finfo(FLOAT8).max
# Of a scale: a row of zeros has no largest value to divide by.
_TINY = 1e-12


@torch.library.custom_op("flux2::quantize_rows", mutates_args=())
def quantize_rows(plain: Tensor | None, gate_up: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return float8 values, and for each row the scale, float32, that puts its largest value on float8's largest.

    Args:
        plain: (rows, columns), columns next to each other.
        gate_up: (rows, 2 * columns), of which ``silu(first half) * second half`` is taken. With both, each row is that
            of `plain` and then what the other gives; float8 is as exact for small values as for large, so one scale
            does.
    """
    quantized, scales = _empty(plain, gate_up)
    _quantize_into(plain, gate_up, quantized, scales)
    return quantized, scales


@quantize_rows.register_fake
def _empty(plain: Tensor | None, gate_up: Tensor | None) -> tuple[Tensor, Tensor]:
    parts = [part for part in (plain, gate_up) if part is not None]
    rows = parts[0].shape[0]
    columns = (0 if plain is None else plain.shape[1]) + (0 if gate_up is None else gate_up.shape[1] // 2)
    return parts[0].new_empty(rows, columns, dtype=FLOAT8), parts[0].new_empty(rows, 1, dtype=torch.float32)


def _quantize_into(plain: Tensor | None, gate_up: Tensor | None, quantized: Tensor, scales: Tensor) -> None:
    if quantized.is_cuda:
        from worker.pipeline.fast_kernel import launch

        with torch.cuda.device(quantized.device):
            launch(plain, gate_up, quantized, scales)
        return
    values = _joined(plain, gate_up)
    torch.amax(values.abs(), dim=1, keepdim=True, out=scales)
    scales.div_(_LARGEST).clamp_min_(_TINY)
    quantized.copy_((values / scales).clamp(-_LARGEST, _LARGEST))


def _joined(plain: Tensor | None, gate_up: Tensor | None) -> Tensor:
    """Return in float32 what is multiplied."""
    parts = [] if plain is None else [plain.float()]
    if gate_up is not None:
        gate, up = gate_up.float().chunk(2, dim=-1)
        parts.append(functional.silu(gate) * up)
    return torch.cat(parts, dim=-1)


class FastLinear(nn.Module):
    """A linear layer without bias whose `weight` is (out, in) in float8, times a scale for each row.

    Attributes:
        dense: the weight in bfloat16 while what it gives is compared with that; else None.
    """

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
        _quantize_into(dense, None, self.weight, self.scale)  # type: ignore[arg-type]

    def forward(self, plain: Tensor | None, gate_up: Tensor | None = None) -> Tensor:
        """Multiply ``[plain, silu(gate) * up]``, (batch, tokens, in), of which either part may be missing."""
        like = gate_up if plain is None else plain
        assert like is not None
        if self.dense is not None:
            return functional.linear(_joined(plain, gate_up).to(like.dtype), self.dense)
        rows, scales = quantize_rows(*(None if part is None else part.flatten(0, -2) for part in (plain, gate_up)))
        scale: Tensor = self.scale  # type: ignore[assignment]
        if not like.is_cuda:
            product = functional.linear(rows.float() * scales, self.weight.float() * scale).to(like.dtype)
        else:
            product = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scales, scale_b=scale.t(), out_dtype=like.dtype, use_fast_accum=True
            )
        return product.view(*like.shape[:-1], -1)


class FastGatedLinear(FastLinear):
    """One whose only input is gate and up side by side."""

    def forward(self, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(None, gate_up)


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
        block.attn.set_processor(JointAttention())
    for block in transformer.single_transformer_blocks:
        attn = block.attn
        attn.to_qkv_mlp_proj = FastLinear(attn.to_qkv_mlp_proj.weight.to(device))
        attn.to_out = FastLinear(attn.to_out.weight.to(device))
        attn.set_processor(ParallelAttention(gated=True))
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
