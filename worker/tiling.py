"""Decode an image in overlapping tiles, for a device that cannot hold the whole one.

Where tiles meet they are blended, so pixels differ a little from a whole decode: only for a second attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Side of a tile; a whole decode of 1024x1024 needs four times the memory of one.
TILE_PIXELS = 512


@contextmanager
def tiled(autoencoder: Any, *, pixels: int = TILE_PIXELS) -> Iterator[None]:
    """Let diffusers' autoencoder decode anything larger than a tile in tiles meanwhile."""
    before = autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size
    autoencoder.tile_sample_min_size = pixels
    autoencoder.tile_latent_min_size = pixels // 2 ** (len(autoencoder.config.block_out_channels) - 1)
    autoencoder.enable_tiling()
    try:
        yield
    finally:
        autoencoder.disable_tiling()
        autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = before
