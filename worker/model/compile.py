"""Compile a transformer's blocks, one kind at a time, without changing a bit of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.model.attention import replace_attention


@torch.library.custom_op("flux2::layer_norm", mutates_args=())
def _layer_norm(hidden_states: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(hidden_states, hidden_states.shape[-1:], eps=eps)


@_layer_norm.register_fake
def _(hidden_states: Tensor, eps: float) -> Tensor:
    return torch.empty_like(hidden_states)


class EagerLayerNorm(nn.Module):
    """A layer norm without weights that the compiler does not fuse."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed: Tensor = _layer_norm(hidden_states, self.eps)
        return normed


def compile_blocks(transformer: Any, *, exact: bool) -> None:
    """Compile the blocks of a Flux2Transformer2DModel, for images of any size; each kind compiles at its first call.

    Args:
        exact: keep the modules' bits; False lets the compiler fuse more.
    """
    # Treat floats like a norm's epsilon as constants; otherwise each kind of block is traced twice.
    torch._dynamo.config.specialize_float = True
    if exact:
        _keep_order_of_sums(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        # Compile the forward, not the module: the hooks of `worker.lora.block_gate` must stay outside. Fused kernels
        # keep values in float32 that the modules round to bfloat16 between operations; emulating the casts restores
        # the modules' bits except for sums, whose order the compiler chooses.
        compiled = torch.compile(block.forward, dynamic=False, options={"emulate_precision_casts": exact})
        block.forward = partial(_of_any_size, compiled)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled blocks without compiling inside the `with` block."""
    # Compiled code ignores hooks that were added after it was traced, such as those of unmerged adapters.
    with torch.compiler.set_stance("force_eager"):
        yield


def _keep_order_of_sums(transformer: Any) -> None:
    # Norms of queries and keys use this project's kernel, layer norms keep torch's: the compiler would add in another
    # order.
    replace_attention(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, child in list(block.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(block, name, EagerLayerNorm(child.eps))


def _of_any_size(
    compiled: Callable[..., Any], *, hidden_states: Tensor, image_rotary_emb: tuple[Tensor, Tensor], **others: Any
) -> Any:
    """Call a compiled block with any number of tokens."""
    # Only the number of tokens is dynamic: kernels with fixed other sizes are faster, and compile faster.
    torch._dynamo.maybe_mark_dynamic(hidden_states, 1)
    for part in image_rotary_emb:
        torch._dynamo.maybe_mark_dynamic(part, 0)
    return compiled(hidden_states=hidden_states, image_rotary_emb=image_rotary_emb, **others)
