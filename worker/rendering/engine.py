"""The interface of an engine, the code that turns noise into an image; `worker.rendering.renderer` runs one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from worker.rendering.denoise import OnEstimate, OnStep, TransformerInputs
from worker.rendering.reference_encoder import References


@dataclass(frozen=True)
class DenoisingInputs:
    """The parameters of one denoising, of one image or of a batch of equal size.

    Attributes:
        steps: 1 or more.
        prompt_embeds: (batch, text tokens, width), in the transformer's dtype.
        negative_prompt_embeds: for classifier-free guidance with two passes a step; None for one pass.
        references: reference images, for one image only; None without them.
        sigmas: noise level at the beginning of each step; empty for AI Toolkit's schedule.
    """

    steps: int
    guidance_scale: float
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None
    references: References | None = None
    sigmas: tuple[float, ...] = ()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that every engine uses."""
    return {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}


class Engine(Protocol):
    """Code that turns noise into an image; `worker.lora.hot_swap` may have merged adapters into its weights."""

    @property
    def name(self) -> str:
        """The name that requests use."""

    @property
    def requirement(self) -> str:
        """The settings that a worker needs to offer this engine, as a sentence for messages."""

    @property
    def supports_tiling(self) -> bool:
        """Whether its autoencoder can decode in tiles."""

    @property
    def waits_for_blocks(self) -> bool:
        """Whether each block waits until its weights are written; steps may then start before all weights are."""

    @property
    def measures_fp8_error(self) -> bool:
        """Whether each result states the distance of a step from the same step with bfloat16 weights."""

    @property
    def takes_sigmas(self) -> bool:
        """Whether it denoises at noise levels that the request gives."""

    @property
    def encodes_references(self) -> bool:
        """Whether it encodes reference images from their files; otherwise it takes their tokens."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages whose code runs, by package."""

    @property
    def transformer(self) -> nn.Module:
        """The transformer that `predict` runs."""

    def predict(self, call: TransformerInputs) -> Tensor:
        """Run the transformer once; returns the velocity, (batch, tokens, channels)."""

    def denoise(
        self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep, on_estimate: OnEstimate | None = None
    ) -> Tensor:
        """Turn noise into latents, both (batch, channels, height / 16, width / 16).

        Args:
            on_estimate: gets estimates as tokens, (batch, tokens, channels). Engines whose loop is not ours never call
                it.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (batch, 3, height, width), about -1 to 1, in float32."""

    def image(self, decoded: Tensor) -> Image.Image:
        """Turn one decoded image, (3, height, width), into RGB pixels."""
