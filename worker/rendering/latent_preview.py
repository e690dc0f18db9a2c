"""Show roughly what an image will look like, from an estimate of its final latents.

A fixed linear map turns the latents of each token, which stands for 16x16 pixels, into the colours of its 2x2 quarters.
It is fitted to the loaded autoencoder by least squares, so each model and each fine-tuned autoencoder has its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from worker.checkpoint.pinned import device_thread_pool
from worker.model.components import Components
from worker.rendering.decode import decode
from worker.rendering.latents import PIXELS, pack, unpack

logger = logging.getLogger("flux2.worker.render")

# Quarters along each side of a token, and pixels along a side of one.
_QUARTERS: Final = 2
_QUARTER_PIXELS: Final = PIXELS // _QUARTERS
# Latents of the fit: 384 tokens for 129 unknowns of each colour.
_PICTURES: Final = 24
_SIDES: Final = (1, 2, 4)
# Of the mean of the three sizes, for a standard deviation of 2: wider latents than those of images fit images better.
_SPREAD: Final = 3.46
# Keeps channels that hardly matter from getting large weights.
_RIDGE: Final = 1e-3
_MOST_PIXELS: Final = 128


@dataclass(frozen=True)
class LatentProjection:
    """Linear map from a token's latents to RGB.

    Attributes:
        weights: (channels + 1, 12), float32; the last row is added to each token.
    """

    weights: Tensor

    @torch.no_grad()
    def colors(self, tokens: Tensor, *, rows: int, columns: int) -> Tensor:
        """Return (2 * rows, 2 * columns, 3), uint8.

        Args:
            tokens: (1, rows * columns, channels), normalised as the transformer sees them.
        """
        values = tokens[0].float() @ self.weights[:-1] + self.weights[-1]
        image = functional.pixel_shuffle(unpack(values[None], rows=rows, columns=columns), _QUARTERS)[0]
        return (image * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


class LatentPreview:
    """The preview of one step, on its way from the device."""

    def __init__(self, colors: Tensor) -> None:
        self._device = colors.device
        self._event: torch.cuda.Event | None = None
        self._colors = colors
        if colors.device.type == "cuda":
            # To pinned memory: any other copy would wait until the device has done all of the step.
            self._colors = torch.empty(colors.shape, dtype=colors.dtype, pin_memory=True)
            self._colors.copy_(colors, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_ready(self) -> bool:
        """Whether it has arrived; any thread may ask, and none waits."""
        if self._event is None:
            return True
        # Otherwise a thread might open a CUDA context on the first GPU, which belongs to another worker.
        with torch.cuda.device(self._device):
            return bool(self._event.query())  # type: ignore[no-untyped-call]

    def image(self) -> Image.Image:
        """Return it, once it is ready; its longer side has at most 128 pixels."""
        image = Image.fromarray(self._colors.numpy())
        image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
        return image


class Previewer:
    """Makes the previews of one model; only the thread that renders uses it."""

    def __init__(self, components: Components) -> None:
        self._components = components

    def preview(self, estimate: Callable[[], Tensor], *, rows: int, columns: int) -> LatentPreview | None:
        """Begin a preview; None if the device cannot make it.

        The first one fits the projection, and the caller waits for that.

        Args:
            estimate: returns the final latents, (1, rows * columns, channels).
        """
        try:
            if self._projection is None:
                return None
            return LatentPreview(self._projection.colors(estimate(), rows=rows, columns=columns))
        # Such as a device whose memory is full. After a fault of the device, the next step fails too.
        except RuntimeError as error:
            logger.info("preview not made", extra={"error": str(error).partition("\n")[0]})
            return None

    @cached_property
    def _projection(self) -> LatentProjection | None:
        # Here and not when the model is loaded: most workers never send a preview.
        # In a thread of its own: cuDNN keeps the algorithms that it picks for each thread, and those of the threads
        # that decode decide bits of images.
        with device_thread_pool(self._components.device, 1, "flux2-preview-fit") as thread:
            try:
                return thread.submit(fit_projection, self._components).result()
            except RuntimeError as error:
                logger.warning("no previews: their fit failed", extra={"error": str(error).partition("\n")[0]})
                return None


@torch.no_grad()
def fit_projection(components: Components) -> LatentProjection:
    """Fit a projection to the model's autoencoder."""
    autoencoder, device = components.autoencoder, components.device
    drawn = fit_latents(4 * autoencoder.config.latent_channels)
    # One at a time, which needs the least memory.
    pairs = [samples(autoencoder, latents[None].to(device)) for latents in drawn]
    tokens, colors = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    known = torch.cat([tokens, torch.ones_like(tokens[:, :1])], dim=1)
    ridge = _RIDGE * len(known) * torch.eye(known.shape[1], dtype=known.dtype)
    weights = torch.linalg.solve(known.T @ known + ridge, known.T @ colors)
    return LatentProjection(weights.float().to(device))


def samples(autoencoder: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Decode latents; return them, (tokens, channels), and the mean colours of their quarters, (tokens, 12).

    Both are float64 on the host.

    Args:
        latents: (1, channels, rows, columns), normalised as the transformer sees them.
    """
    quarters = functional.avg_pool2d(decode(autoencoder, latents).clamp(-1, 1), _QUARTER_PIXELS)
    colors = pack(functional.pixel_unshuffle(quarters, _QUARTERS))
    return pack(latents)[0].double().cpu(), colors[0].double().cpu()


def fit_latents(channels: int) -> Tensor:
    """Draw the latents of the fit, (24, channels, 4, 4): noise of all sizes, because neighbours in images are alike.

    Their bits are the same on every host.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    side = _SIDES[-1]
    drawn = (torch.randn((_PICTURES, channels, size, size), generator=generator) for size in _SIDES)
    return _SPREAD * torch.stack([functional.interpolate(noise, size=(side, side)) for noise in drawn]).mean(0)
