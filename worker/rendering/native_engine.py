"""This project's engines: diffusers' modules that round where AI Toolkit's do, and the loop of `denoise`."""

from __future__ import annotations

from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from shared.job import Engine as EngineName
from worker.model.components import Components
from worker.rendering import decode
from worker.rendering.denoise import (
    OnEstimate,
    OnStep,
    TransformerInputs,
    Velocity,
    denoise,
    distilled_velocity,
    guided_velocity,
    predict,
    velocity_with_references,
)
from worker.rendering.engine import DenoisingInputs, package_versions
from worker.rendering.latents import image_ids, pack, text_ids, unpack
from worker.rendering.sigmas import given_sigmas, sigmas


class ExactEngine:
    """Runs the modules of `components`; its images have AI Toolkit's bits."""

    name: ClassVar[EngineName] = "exact"
    requirement: ClassVar[str] = "FLUX2_MODEL_PRECISION must be bf16, fp32 or qfloat8"
    supports_tiling: ClassVar[bool] = True
    waits_for_blocks: ClassVar[bool] = True
    measures_fp8_error: ClassVar[bool] = False
    takes_sigmas: ClassVar[bool] = True
    encodes_references: ClassVar[bool] = False

    def __init__(self, components: Components) -> None:
        self.transformer = components.transformer
        self._autoencoder = components.autoencoder
        self.versions = package_versions()

    def predict(self, call: TransformerInputs) -> Tensor:
        return predict(self.transformer, call)

    def denoise(
        self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep, on_estimate: OnEstimate | None = None
    ) -> Tensor:
        rows, columns = noise.shape[2:]
        ids = image_ids(rows, columns, device=noise.device)
        if run.references is not None:
            ids = torch.cat([ids, run.references.ids])
        velocity = self._velocity(run.prompt_embeds, ids, run.guidance_scale)
        # [klein] has no guidance input, so its guidance needs a second pass with the negative prompt.
        if run.negative_prompt_embeds is not None:
            away = self._velocity(run.negative_prompt_embeds, ids, run.guidance_scale)
            velocity = guided_velocity(velocity, away, guidance_scale=run.guidance_scale)
        if run.references is not None:
            assert run.references.tokens is not None
            velocity = velocity_with_references(velocity, run.references.tokens)
        # The schedule counts the tokens of the image alone.
        levels = given_sigmas(run.sigmas) if run.sigmas else sigmas(run.steps, rows * columns)
        tokens = denoise(velocity, pack(noise), levels, on_step=on_step, on_estimate=on_estimate)
        return unpack(tokens, rows=rows, columns=columns)

    def decode(self, latents: Tensor) -> Tensor:
        return decode.decode(self._autoencoder, latents)

    def image(self, decoded: Tensor) -> Image.Image:
        return decode.to_image(decoded)

    def _velocity(self, embeds: Tensor, img_ids: Tensor, guidance_scale: float) -> Velocity:
        return distilled_velocity(
            self.transformer,
            prompt_embeds=embeds,
            img_ids=img_ids,
            txt_ids=text_ids(embeds.shape[1], device=embeds.device),
            guidance_scale=guidance_scale,
        )


class FastEngine(ExactEngine):
    """Runs the modules of `components` with float8 weights (`worker.model.fp8`), faster and with other bits."""

    name: ClassVar[EngineName] = "fast"
    requirement: ClassVar[str] = "FLUX2_MODEL_PRECISION must be fp8"
    measures_fp8_error: ClassVar[bool] = True


def native_engine(components: Components) -> ExactEngine:
    """Return this project's engine for the precision of `components`."""
    return {engine.name: engine for engine in (ExactEngine, FastEngine)}[components.precision.engine](components)
