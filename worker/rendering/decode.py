"""Decode latents to pixels, whole or in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

#: Side of a tile in pixels; a whole decode of 1024x1024 needs four times the memory of a tile.
TILE_PIXELS = 512


def unpatchify(latents: Tensor) -> Tensor:
    """Undo the 2x2 packing: (batch, 4 * channels, rows, columns) to (batch, channels, 2 * rows, 2 * columns)."""
    batch, packed, rows, columns = latents.shape
    # Channel, then row and column inside the patch: the order in which the autoencoder packs.
    patches = latents.reshape(batch, packed // 4, 2, 2, rows, columns)
    return patches.permute(0, 1, 4, 2, 5, 3).reshape(batch, packed // 4, 2 * rows, 2 * columns)


def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """Return images (batch, 3, height, width), about -1 to 1, in float32.

    Args:
        latents: (batch, channels, height / 16, width / 16), normalised as the transformer sees them.
    """
    latents = latents.to(autoencoder.dtype)
    # The autoencoder's batch norm holds the statistics that normalised the latents in training.
    mean = autoencoder.bn.running_mean.view(1, -1, 1, 1)
    variance = autoencoder.bn.running_var.view(1, -1, 1, 1)
    latents = latents * torch.sqrt(variance + autoencoder.bn.eps) + mean
    image: Tensor = autoencoder.decode(unpatchify(latents), return_dict=False)[0]
    return image.float()


def to_image(decoded: Tensor) -> Image.Image:
    """Convert one decoded image, (3, height, width), to RGB pixels as diffusers' VaeImageProcessor does."""
    unit = (decoded * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((unit * 255).round().astype("uint8"))


@contextmanager
def tiled_decoding(autoencoder: Any, *, pixels: int = TILE_PIXELS) -> Iterator[None]:
    """Make diffusers' autoencoder decode in tiles inside the `with` block."""
    before = autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size
    autoencoder.tile_sample_min_size = pixels
    autoencoder.tile_latent_min_size = pixels // 2 ** (len(autoencoder.config.block_out_channels) - 1)
    autoencoder.enable_tiling()
    try:
        yield
    finally:
        autoencoder.disable_tiling()
        autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = before
