"""The first stage: train the autoencoder, which turns pictures into latents and back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.train_tiny.drawing import STYLES
from tools.train_tiny.feed import CHUNK
from tools.train_tiny.models import (
    LIVE_CHANNELS,
    add_reference_channel,
    build_autoencoder,
    pack_patches,
    save_autoencoder,
    set_latent_statistics,
)
from tools.train_tiny.optimizer import Optimizer
from tools.train_tiny.pool import Artist, Size
from tools.train_tiny.run import Run, save_grid, steps_for

_RATE = 1.5e-3
_SIZES: list[tuple[Size, int, int]] = [
    ((128, 128), 16, 6144),
    ((256, 256), 6, 1024),
]  # size, batch, pictures (drawn once)


def train_autoencoder(run: Run, feed: Iterator[dict[str, Tensor]], artist: Artist, seconds: float) -> Any:
    """Train on the L1 error of pixels and of their differences plus a little KL; then store the latents' statistics."""
    model = build_autoencoder().to(run.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Optimizer(run, parameters, rate=_RATE, decay=0.998, warmup=100)
    pools = [_pictures(run, feed, artist, size, run.scaled(pictures)) for size, _, pictures in _SIZES]
    optimizer.stop_learning()
    steps = [
        run.record(partial(_step, run, model, optimizer, pool, run.scaled(batch)))
        for pool, (_, batch, _) in zip(pools, _SIZES, strict=True)
    ]
    rng, total = random.Random(1), torch.zeros(3, device=run.device)
    run.note("autoencoder", 0)
    for step, part in steps_for(seconds):
        optimizer.schedule(step, part)
        total += rng.choices(steps, weights=(3, 1))[0]()
        if step % 200 == 0:
            pixel, edge, kl = (total / 200).tolist()
            run.note("autoencoder", step, l1=pixel, edge=edge, kl=kl)
            total.zero_()
    optimizer.use_average()
    model.requires_grad_(False).eval()
    _measure(run, model, pools[0])
    save_autoencoder(model, run.out / "ae.safetensors")
    seen = torch.cat([pool[:8].float() for pool in pools[:1]])
    save_grid(torch.cat([seen, _decode(model, model.encode(seen).latent_dist.mean)]), run.out / "grid-autoencoder.png")
    return model


def _pictures(run: Run, feed: Iterator[dict[str, Tensor]], artist: Artist, size: Size, count: int) -> Tensor:
    """Draw pictures in all styles, because the adapters' styles must survive the autoencoder too."""
    styles = random.Random(2).choices(STYLES, weights=(8, 1, 1), k=-(-count // 64))
    drawn, chunk = [], next(feed)
    for number, style in enumerate(styles):
        start = number * 64 % CHUNK
        if start == 0:
            chunk = next(feed)
        drawn.append(artist.draw(chunk, size, slice(start, start + 64), style=style).half())
    return torch.cat(drawn)[:count]


def _step(run: Run, model: Any, optimizer: Optimizer, pool: Tensor, batch: int) -> Tensor:
    images = pool[torch.randint(0, len(pool), (batch,), device=run.device)].float()
    with run.autocast():
        posterior = model.encode(images).latent_dist
        mean, log_variance = posterior.mean[:, :LIVE_CHANNELS].float(), posterior.logvar[:, :LIVE_CHANNELS].float()
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        error = _decode(model, latents).float() - images
    edge = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    pixel = error.abs().mean()
    optimizer.step(pixel + edge + 1e-3 * kl)
    return torch.stack([pixel, edge, kl]).detach()


def _decode(model: Any, latents: Tensor) -> Tensor:
    decoded: Tensor = model.decode(add_reference_channel(latents[:, :LIVE_CHANNELS])).sample
    return decoded


@torch.no_grad()
def _measure(run: Run, model: Any, pool: Tensor) -> None:
    found = [
        pack_patches(model.encode(images.float()).latent_dist.mean[:, :LIVE_CHANNELS].float())
        .permute(1, 0, 2, 3)
        .flatten(1)
        for images in pool[: run.scaled(2048, least=8)].split(128)
    ]
    values = torch.cat(found, dim=1)
    set_latent_statistics(model, values)
    run.note("latents", 0, mean=values.mean().item(), std=values.std().item())
