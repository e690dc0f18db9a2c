"""Build the inputs of an item's first step on the device: embeddings and starting noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import InvalidRequest
from shared.job import ItemSpec, TokenReport
from shared.prompt import MAX_TOKENS, cut_warning
from worker.model.components import Components
from worker.rendering.denoise import TransformerInputs
from worker.rendering.latents import PIXELS, image_ids, noise, pack, text_ids
from worker.rendering.prompt_encoder import EncodedPrompt, PromptEncoder


class ItemInputs(NamedTuple):
    """An item's inputs, on the device, and what is to be reported about its prompts.

    Attributes:
        negative_embeds: None if each step has only one pass.
        start: noise, (1, channels, height / 16, width / 16).
        warnings: one for each prompt that was cut.
    """

    prompt_embeds: Tensor
    negative_embeds: Tensor | None
    start: Tensor
    tokens: TokenReport
    warnings: tuple[str, ...]


class InputBuilder:
    """Encodes prompts and draws noise for one base model; threads may share it.

    Args:
        prompt_cache: number of encoded prompts to cache.
    """

    def __init__(self, components: Components, *, prompt_cache: int) -> None:
        self._components = components
        self._prompts = PromptEncoder(
            components.text_encoder, components.tokenizer, device=components.device, cache_size=prompt_cache
        )

    def check(self, spec: ItemSpec) -> None:
        """Refuse values that cannot give a meaningful image.

        Raises:
            InvalidRequest: names the field; see `shared.prompt.check_prompt` too.
        """
        # The API floors and bounds all of these, so a violation is a caller's bug.
        for field, pixels in (("width", spec.width), ("height", spec.height)):
            if pixels < PIXELS or pixels % PIXELS:
                raise InvalidRequest(f"{field} is {pixels}, not a positive multiple of {PIXELS}", field=field)
        if spec.num_inference_steps < 1:
            raise InvalidRequest(f"{spec.num_inference_steps} steps; at least 1 is needed", field="sample_steps")
        if spec.sigmas and len(spec.sigmas) != spec.num_inference_steps:
            raise InvalidRequest(
                f"{len(spec.sigmas)} noise levels for {spec.num_inference_steps} steps; each step begins at one",
                field="sigmas",
            )
        if not math.isfinite(spec.guidance_scale):
            raise InvalidRequest(
                f"guidance_scale is {spec.guidance_scale}, not a finite number", field="guidance_scale"
            )
        for ref in spec.adapters:
            if not math.isfinite(ref.multiplier):
                raise InvalidRequest(
                    f"the multiplier of {ref.path!r} is {ref.multiplier}, not a finite number",
                    field="network_multiplier",
                )
        self._prompts.check(spec.prompt)

    def build(self, spec: ItemSpec) -> ItemInputs:
        """Encode an item's prompts and draw its noise."""
        negative = self._encode(spec.neg) if self._has_guidance(spec) else None
        start = self._noise(spec.seed, height=spec.height, width=spec.width)
        prompt = self._encode(spec.prompt)
        return ItemInputs(
            prompt.embeds,
            None if negative is None else negative.embeds,
            start,
            TokenReport(prompt=prompt.tokens, neg=None if negative is None else negative.tokens, limit=MAX_TOKENS),
            tuple(
                cut_warning(name, encoded.tokens, encoded.unused)
                for name, encoded in (("prompt", prompt), ("negative prompt", negative))
                if encoded is not None and encoded.is_cut
            ),
        )

    def typical_call(self) -> TransformerInputs:
        """Return the inputs of a step half way through an image: 1024x1024 on a GPU, 128x128 on a CPU."""
        device = self._components.device
        side = 1024 if device.type == "cuda" else 128
        prompt_embeds = self._encode("a photograph").embeds
        timestep = torch.full((1,), 0.5, dtype=prompt_embeds.dtype, device=device)
        return TransformerInputs(
            pack(self._noise(0, height=side, width=side)),
            timestep,
            prompt_embeds,
            image_ids(side // PIXELS, side // PIXELS, device=device),
            text_ids(prompt_embeds.shape[1], device=device),
            torch.full_like(timestep, 4.0),
        )

    def _encode(self, prompt: str) -> EncodedPrompt:
        encoded = self._prompts.encode(prompt)
        # The text encoder may have another dtype than the transformer.
        return encoded._replace(embeds=encoded.embeds.to(self._components.dtype))

    def _has_guidance(self, spec: ItemSpec) -> bool:
        """Whether each step needs a second pass with the negative prompt."""
        # Up to a scale of 1, AI Toolkit runs only the pass with the prompt.
        return not self._components.is_distilled and spec.guidance_scale > 1

    def _noise(self, seed: int, *, height: int, width: int) -> Tensor:
        channels = self._components.transformer.config.in_channels
        drawn = noise(seed, channels=channels, height=height, width=width, dtype=self._components.dtype)
        return drawn.to(self._components.device)
