"""Pools of encoded pictures on the device, from which batches are drawn; pictures are replaced little by little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tools.train_tiny import drawing
from tools.train_tiny.feed import CAPTION_TOKENS, CHUNK
from tools.train_tiny.models import LIVE_CHANNELS, encode_pictures
from tools.train_tiny.run import Run
from worker.rendering.latents import PIXELS, pack

Size = tuple[int, int]  # height and width in pixels

# Pixels encoded at once; with more, the models and the pools no longer fit on the device.
_PIXELS_AT_ONCE = 6_000_000


class Artist:
    """Draws the pictures of a chunk; on a GPU, each figure is one compiled kernel."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._figure = torch.compile(drawing.draw_figure, dynamic=True) if run.is_cuda else drawing.draw_figure

    @torch.no_grad()
    def draw(self, chunk: dict[str, Tensor], size: Size, rows: slice, *, style: str = "plain") -> Tensor:
        """Draw some rows of a chunk: pictures (rows, 3, height, width), from -1 to 1."""
        figures = chunk["figures"][rows]
        used = max(1, int((figures[:, :, 3] > 0).sum(1).max()))
        device = self._run.device
        return drawing.draw(
            figures[:, :used].to(device), chunk["backgrounds"][rows].to(device), height=size[0], width=size[1],
            style=style, figure=self._figure,
        )  # fmt: skip


class Pool:
    """Encoded pictures of one size with their captions.

    Attributes:
        latents: live latents, (pictures, tokens, 64), bfloat16.
        ids: token ids, (pictures, CAPTION_TOKENS).
        triggered: whether the caption has the trigger, (pictures,).
    """

    def __init__(self, run: Run, size: Size, pictures: int, *, style: str = "plain") -> None:
        self.run, self.size, self.style = run, size, style
        self.rows, self.columns = size[0] // PIXELS, size[1] // PIXELS
        shape = (pictures, self.rows * self.columns, 4 * LIVE_CHANNELS)
        self.latents = torch.zeros(shape, dtype=torch.bfloat16, device=run.device)
        self.ids = torch.zeros(pictures, CAPTION_TOKENS, dtype=torch.long, device=run.device)
        self.triggered = torch.zeros(pictures, dtype=torch.bool, device=run.device)
        self._next = 0
        self._at_once = min(CHUNK, 2 ** int(math.log2(_PIXELS_AT_ONCE // (size[0] * size[1]))))
        self._unused: dict[str, Tensor] | None = None
        self._used = 0

    def fill(self, feed: Iterator[dict[str, Tensor]], artist: Artist, autoencoder: Any) -> None:
        """Draw and encode pictures until the pool is full."""
        filled = 0
        while filled < len(self.latents):
            filled += self.renew(feed, artist, autoencoder)

    def renew(self, feed: Iterator[dict[str, Tensor]], artist: Artist, autoencoder: Any) -> int:
        """Replace the oldest pictures, as many as are encoded at once; return their number."""
        if self._unused is None or self._used >= CHUNK:
            self._unused, self._used = next(feed), 0
        chunk, count = self._unused, min(self._at_once, CHUNK - self._used, len(self.latents) - self._next)
        rows, places = slice(self._used, self._used + count), slice(self._next, self._next + count)
        images = artist.draw(chunk, self.size, rows, style=self.style)
        with self.run.autocast():
            self.latents[places] = pack(encode_pictures(autoencoder, images)).bfloat16()
        self.ids[places] = chunk["ids"][rows].to(self.run.device)
        self.triggered[places] = chunk["triggered"][rows].to(self.run.device)
        self._used += count
        self._next = (self._next + count) % len(self.latents)
        return count

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, ids and triggers of `count` randomly chosen pictures, without waiting for the device."""
        chosen = torch.randint(0, len(self.latents), (count,), device=self.run.device)
        return self.latents[chosen].float(), self.ids[chosen], self.triggered[chosen]
