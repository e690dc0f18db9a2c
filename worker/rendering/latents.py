"""Latents: the starting noise, how positions become tokens, and the coordinates that tell tokens apart."""

from __future__ import annotations

import torch
from torch import Tensor

# Pixels per latent position: the autoencoder shrinks by 8 and packing by 2.
PIXELS = 16


def noise(seed: int, *, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Draw one image's starting noise, (1, channels, height / 16, width / 16), on the CPU.

    Drawn in float32 and rounded to the dtype of the embeddings. That is what AI Toolkit's draw in that dtype gives with
    the torch it installs (2.13); torch 2.11 draws other bfloat16 numbers, and so other images altogether. Noise that
    stayed in float32 would be a third thing. Each image has its own generator, so images of a batch equal images
    rendered alone.

    Args:
        height: in pixels, a multiple of 16, as is `width`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, channels, height // PIXELS, width // PIXELS), generator=generator).to(dtype)


def pack(latents: Tensor) -> Tensor:
    """Turn (batch, channels, rows, columns) into tokens, (batch, rows * columns, channels).

    In memory in that order, as AI Toolkit's are: on a GPU the layout picks the kernel of the first layer.
    """
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, *, rows: int, columns: int) -> Tensor:
    """Undo `pack`."""
    channels_first = tokens.transpose(1, 2)
    return channels_first.view(*channels_first.shape[:2], rows, columns)


def image_ids(rows: int, columns: int, *, device: torch.device | None = None) -> Tensor:
    """Return the coordinates (time, row, column, text) of image tokens: (rows * columns, 4), int64."""
    return _grid(1, rows, columns, 1, device=device)


def text_ids(tokens: int, *, device: torch.device | None = None) -> Tensor:
    """Return the coordinates (time, row, column, text) of text tokens: (tokens, 4), int64."""
    return _grid(1, 1, 1, tokens, device=device)


def _grid(*sizes: int, device: torch.device | None) -> Tensor:
    """Count in every dimension, on the device: a copy to it would wait behind weights that are on their way."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
