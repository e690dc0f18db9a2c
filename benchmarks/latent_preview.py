"""Measure how much of an image's colours the projection of latent previews explains, and what a preview costs.

Renders pictures with the embedded demonstration model, or with the model that the settings name, and prints R2 of the
projection's colours against the mean colours of 8x8 pixels of the decoded images.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from shared.demo_model import DRAWN_PX, PROMPTS
from shared.job import ItemSpec
from shared.settings import ModelSettings, Settings
from worker.device import pick_devices
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.latent_preview import LatentProjection, fit_projection, samples
from worker.rendering.renderer import Renderer

_STEPS = 20


def main(
    size: Annotated[int, typer.Option(min=64, help="Side of the pictures in pixels.")] = DRAWN_PX,
    configured: Annotated[bool, typer.Option(help="Use the model of FLUX2_MODEL_PATH instead.")] = False,
) -> None:
    """Fit the projection, render the demonstration prompts, and print R2."""
    settings = Settings()
    device = pick_devices(settings.worker.device)[0]
    with _model(settings, configured=configured) as model:
        components = load_components(model, device=device, hf_token=settings.hub_token())
        began = time.perf_counter()
        projection = fit_projection(components)
        typer.echo(f"fit: {time.perf_counter() - began:.2f} s on {device}")
        finals = _render(Renderer(components, prompt_cache=len(PROMPTS)), model.id, size)
        pairs = [samples(components.autoencoder, latents) for latents in finals]
    for prompt, pair in zip(PROMPTS, pairs, strict=True):
        typer.echo(f"R2 {_explained(projection, *pair):6.3f}  {prompt}")
    whole = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    typer.echo(f"R2 {_explained(projection, *whole):6.3f}  all pictures together")


@contextmanager
def _model(settings: Settings, *, configured: bool) -> Iterator[ModelSettings]:
    if configured:
        yield settings.model
        return
    with tempfile.TemporaryDirectory(prefix="flux2-preview-") as folder:
        write_tiny_checkpoint(Path(folder))
        yield ModelSettings(path=folder, text_encoder=f"{folder}/text_encoder", precision="fp32")


@torch.no_grad()
def _render(renderer: Renderer, model: str, size: int) -> list[Tensor]:
    """Return the final latents of each prompt's picture."""
    finals: list[Tensor] = []
    engine = next(iter(renderer._engines.values()))
    decode = engine.decode

    def keep(latents: Tensor) -> Tensor:
        finals.append(latents)
        return decode(latents)

    engine.decode = keep  # type: ignore[method-assign]
    for seed, prompt in enumerate(PROMPTS):
        spec = ItemSpec(
            model=model,
            prompt=prompt,
            neg="",
            width=size,
            height=size,
            requested_width=size,
            requested_height=size,
            seed=seed,
            num_inference_steps=_STEPS,
            guidance_scale=4.0,
            adapters=(),
            output_format="png",
            engine=engine.name,  # type: ignore[arg-type]
        )
        renderer.render(spec, [], on_progress=lambda _: None)
    return finals


def _explained(projection: LatentProjection, tokens: Tensor, colors: Tensor) -> float:
    weights = projection.weights.double().cpu()
    found = tokens @ weights[:-1] + weights[-1]
    residual, total = (found - colors).square().sum(), (colors - colors.mean(0)).square().sum()
    return float(1 - residual / total)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
