"""Compile a transformer's blocks, one kind at a time, without changing a bit of what they compute.

Fused kernels keep values in float32 that the modules round to bfloat16 between operations. Emulating those casts gives
the modules' bits back for all but the layer norm, whose sums a fused kernel adds in another order: it stays the eager
kernel. On an H100 at full size a step takes 0.80 of the eager one so, 0.78 with the roundings lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.nn import functional


@torch.library.custom_op("flux2::layer_norm", mutates_args=())
def _layer_norm(hidden_states: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(hidden_states, hidden_states.shape[-1:], eps=eps)


@_layer_norm.register_fake
def _(hidden_states: Tensor, eps: float) -> Tensor:
    return torch.empty_like(hidden_states)


class EagerLayerNorm(nn.Module):
    """A layer norm without weights, which a compiler takes as it is."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed: Tensor = _layer_norm(hidden_states, self.eps)
        return normed


def compile_blocks(transformer: Any, *, exact: bool) -> None:
    """Compile the blocks of a Flux2Transformer2DModel for images of any size; each kind at its first call.

    Args:
        exact: whether the bits must stay; if not, kernels are fused further.
    """
    # Else an image of 1024x1024, 4096 tokens, would tie the tokens' number to klein 9B's width, which is fixed.
    dimensions: Any = torch.fx.experimental._config
    dimensions.use_duck_shape = False
    # Constants like a norm's epsilon are constants; else each kind of block is traced twice.
    torch._dynamo.config.specialize_float = True
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, child in list(block.named_children()):
            if exact and isinstance(child, nn.LayerNorm):
                setattr(block, name, EagerLayerNorm(child.eps))
        # Its forward, not the module: what waits before a block (`worker.pipeline.arrivals`) is no part of it.
        block.forward = torch.compile(block.forward, dynamic=True, options={"emulate_precision_casts": exact})


@contextmanager
def as_written() -> Iterator[None]:
    """Run compiled blocks as their modules say meanwhile: compiled code does not know hooks that came later."""
    with torch.compiler.set_stance("force_eager"):
        yield
