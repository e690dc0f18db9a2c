"""Normalise and rotate queries and keys in one kernel, with the bits of torch's operations."""

from __future__ import annotations

import logging
from functools import cache

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from worker.kernels.toolchain import triton_unavailable_reason
from worker.model.rounding import rounded_rms_norm

logger = logging.getLogger("flux2.worker.model")

#: Channels of an attention head in every released FLUX.2; the kernels work on rows of this length.
HEAD_WIDTH = 128


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
    if norm_kernel_runs(values.device, heads=values.shape[-2], width=values.shape[-1]):
        return _launch(values, weight, cosines, sines, eps)
    return _norm_and_rotate(values, weight, cosines, sines, eps)


@norm_and_rotate.register_fake
def _(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    return values.new_empty(values.shape)


def contiguous_channels(values: Tensor) -> Tensor:
    """Return heads whose channels are contiguous, as the kernels read them; a copy only where they are not."""
    return values if values.stride(-1) == 1 else values.contiguous()


def norm_kernel_runs(device: torch.device, *, heads: int, width: int) -> bool:
    """Whether this project's kernel runs there for heads of `width` channels, with torch's bits."""
    return device.type == "cuda" and width == HEAD_WIDTH and _kernel_matches_torch(device, heads)


def _norm_and_rotate(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    normed = rounded_rms_norm(values, weight, eps=eps)
    rotated: Tensor = apply_rotary_emb(normed, (cosines, sines), sequence_dim=1)  # type: ignore[arg-type, assignment]
    return rotated.contiguous()


def _launch(values: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    from worker.kernels.attention_kernel import launch

    rotated = values.new_empty(values.shape)
    with torch.cuda.device(values.device):
        launch(contiguous_channels(values), weight, cosines, sines, eps, rotated)
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
    values = draw(1, 500, 3 * heads, HEAD_WIDTH)[:, :, :heads]
    angles = draw(500, HEAD_WIDTH).float()
    given = values, draw(HEAD_WIDTH), angles.cos(), angles.sin(), 1e-6
    holds = torch.equal(_launch(*given), _norm_and_rotate(*given))
    if not holds:
        logger.warning("the fused norm kernel is not used, steps take longer: this torch adds up in another order")
    return holds
