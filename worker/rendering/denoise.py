"""Denoise latents step by step with a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Latents (batch, tokens, channels) and timesteps (batch,) in 0..1 to the predicted velocity, shaped as the latents.
Velocity = Callable[[Tensor, Tensor], Tensor]

#: Called with (steps done, steps) after each step; an error that it raises ends the denoising.
OnStep = Callable[[int, int], None]

#: Called with (steps done, a function that estimates the final latents, float32) before `OnStep`.
OnEstimate = Callable[[int, Callable[[], Tensor]], None]


@dataclass(frozen=True)
class TransformerInputs:
    """The inputs of one pass through a transformer.

    Attributes:
        latents: (batch, tokens, channels).
        timestep: (batch,), 0 to 1, in the latents' dtype.
        prompt_embeds: (batch, text tokens, width).
        img_ids, txt_ids: coordinates of image and text tokens, (batch, tokens, 4) or (tokens, 4).
        guidance: (batch,); models without an embedder for it ignore it.
    """

    latents: Tensor
    timestep: Tensor
    prompt_embeds: Tensor
    img_ids: Tensor
    txt_ids: Tensor
    guidance: Tensor


def predict(transformer: Any, call: TransformerInputs) -> Tensor:
    """Run diffusers' transformer once; returns the velocity, shaped as the latents."""
    prediction: Tensor = transformer(
        hidden_states=call.latents,
        encoder_hidden_states=call.prompt_embeds,
        timestep=call.timestep,  # the model multiplies by 1000, in the latents' dtype
        img_ids=call.img_ids,
        txt_ids=call.txt_ids,
        guidance=call.guidance,
        return_dict=False,
    )[0]
    return prediction


def distilled_velocity(
    transformer: Any, *, prompt_embeds: Tensor, img_ids: Tensor, txt_ids: Tensor, guidance_scale: float
) -> Velocity:
    """Return the velocity of one pass with guidance as an input; models without an embedder ignore the guidance.

    Args:
        prompt_embeds: (batch, text tokens, width).
        img_ids: (image tokens, 4).
        txt_ids: (text tokens, 4).
    """

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        guidance = torch.full_like(timestep, guidance_scale)
        return predict(transformer, TransformerInputs(latents, timestep, prompt_embeds, img_ids, txt_ids, guidance))

    return velocity


def guided_velocity(conditional: Velocity, unconditional: Velocity, *, guidance_scale: float) -> Velocity:
    """Return the velocity under classifier-free guidance, which extrapolates from the negative prompt to the prompt.

    Source:
        Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598; a scale of 1 here
        means no guidance.
    """

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        # Two passes instead of a batch of two, so that memory and the kernels' rounding are AI Toolkit's.
        towards, away = conditional(latents, timestep), unconditional(latents, timestep)
        return away + guidance_scale * (towards - away)

    return velocity


def velocity_with_references(velocity: Velocity, references: Tensor) -> Velocity:
    """Return a velocity of the image's latents from one whose transformer also reads reference tokens.

    Args:
        velocity: of the image's tokens followed by those of the references.
        references: (1, reference tokens, channels); the same in every step.
    """

    def of_image(latents: Tensor, timestep: Tensor) -> Tensor:
        whole = torch.cat([latents, references.to(latents.dtype)], dim=1)
        return velocity(whole, timestep)[:, : latents.shape[1]]

    return of_image


def denoise(
    velocity: Velocity,
    latents: Tensor,
    sigmas: Sequence[float],
    *,
    on_step: OnStep,
    on_estimate: OnEstimate | None = None,
) -> Tensor:
    """Follow the velocity from noise to an image by Euler's method.

    Args:
        latents: (batch, tokens, channels), noise at ``sigmas[0]``.
        on_estimate: nothing is calculated for it unless it calls the function that it gets.

    Source:
        denoise in https://github.com/black-forest-labs/flux2/blob/main/src/flux2/sampling.py
    """
    steps = len(sigmas) - 1
    # No scheduler object, because every rounding counts in bfloat16: AI Toolkit creates the timestep and adds the step
    # in the latents' dtype, while diffusers' scheduler works in float32.
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=1):
        timestep = torch.full(latents.shape[:1], sigma, dtype=latents.dtype, device=latents.device)
        direction = velocity(latents, timestep)
        latents = latents + (sigma_next - sigma) * direction
        if on_estimate is not None:
            on_estimate(step, partial(_final_latents, latents, direction, sigma_next))
        on_step(step, steps)
    return latents


def _final_latents(latents: Tensor, direction: Tensor, sigma: float) -> Tensor:
    """Return where one step straight to ``sigma = 0`` would lead, in float32."""
    return latents.float() - sigma * direction.float()
