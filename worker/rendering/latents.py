"""Make and reshape latents: the starting noise, the order of the tokens, and the tokens' coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

# Pixels per latent position: the autoencoder shrinks by 8 and packing by 2.
PIXELS = 16


def noise(seed: int, *, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Draw one image's starting noise, (1, channels, height / 16, width / 16), on the CPU.

    Args:
        height, width: in pixels, multiples of 16.
        dtype: dtype of the prompt's embeddings.
    """
    # One generator for each image, so that an image does not depend on the batch in which it is rendered.
    generator = torch.Generator("cpu").manual_seed(seed)
    # AI Toolkit draws in `dtype`. With the torch that it installs (2.13) that equals a rounded float32 draw. Torch 2.11
    # draws other bfloat16 numbers, so other images; noise that stayed in float32 would give a third image.
    return torch.randn((1, channels, height // PIXELS, width // PIXELS), generator=generator).to(dtype)


def pack(latents: Tensor) -> Tensor:
    """Turn (batch, channels, rows, columns) into tokens, (batch, rows * columns, channels)."""
    # Contiguous in this order, as in AI Toolkit: on a GPU the layout decides which kernel the first layer uses.
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, *, rows: int, columns: int) -> Tensor:
    """Undo `pack`."""
    channels_first = tokens.transpose(1, 2)
    return channels_first.view(*channels_first.shape[:2], rows, columns)


def image_ids(rows: int, columns: int, *, time: int = 0, device: torch.device | None = None) -> Tensor:
    """Return the coordinates (time, row, column, text) of image tokens: (rows * columns, 4), int64.

    Args:
        time: 0 for the image that is denoised; reference images have others.
    """
    ids = _grid(1, rows, columns, 1, device=device)
    ids[:, 0] = time
    return ids


def text_ids(tokens: int, *, device: torch.device | None = None) -> Tensor:
    """Return the coordinates (time, row, column, text) of text tokens: (tokens, 4), int64."""
    return _grid(1, 1, 1, tokens, device=device)


def _grid(*sizes: int, device: torch.device | None) -> Tensor:
    """Return all combinations of coordinates below `sizes`."""
    # Made on the device: a copy from the host would wait for the base weights that are being copied there.
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
