"""Wrap diffusers' own FLUX.2 pipelines as an engine, to measure how far plain diffusers is from AI Toolkit.

The engine never renders a job: its modules lack the changes of `worker.model.rounding`, its schedule depends on the
number of steps, and its scheduler rounds at other places.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from torch import Tensor

from shared.errors import GoldensError
from worker.model.components import Components
from worker.rendering import decode
from worker.rendering.denoise import OnEstimate, OnStep, TransformerInputs, predict
from worker.rendering.engine import DenoisingInputs, package_versions
from worker.rendering.latents import PIXELS, unpack

# scheduler/scheduler_config.json of black-forest-labs/FLUX.2-dev.
_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


class DiffusersEngine:
    """Runs diffusers' unchanged modules and pipeline over the weights of `components`."""

    name: ClassVar[str] = "diffusers"
    requirement: ClassVar[str] = "only `flux2 verify` runs it"
    supports_tiling: ClassVar[bool] = True
    waits_for_blocks: ClassVar[bool] = False
    measures_fp8_error: ClassVar[bool] = False
    takes_sigmas: ClassVar[bool] = False
    encodes_references: ClassVar[bool] = True

    def __init__(self, components: Components) -> None:
        self.versions = package_versions()
        self.transformer = _unmodified(Flux2Transformer2DModel, components.transformer)
        self._autoencoder = _unmodified(AutoencoderKLFlux2, components.autoencoder)
        parts = {"vae": self._autoencoder, "transformer": self.transformer, "text_encoder": None, "tokenizer": None}
        scheduler = FlowMatchEulerDiscreteScheduler(**_SCHEDULER)  # type: ignore[no-untyped-call]
        kind: Any = Flux2Pipeline if components.is_distilled else Flux2KleinPipeline
        self._pipeline = kind(scheduler=scheduler, **parts)
        self._pipeline.set_progress_bar_config(disable=True)

    def predict(self, call: TransformerInputs) -> Tensor:
        return predict(self.transformer, call)

    def denoise(
        self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep, on_estimate: OnEstimate | None = None
    ) -> Tensor:
        if run.references is not None:
            raise GoldensError("diffusers' pipelines are not compared with reference images; choose another engine")
        rows, columns = noise.shape[2:]
        tokens: list[Tensor] = []

        def keep_latents(_: Any, step: int, __: Any, now: dict[str, Tensor]) -> dict[str, Tensor]:
            tokens[:] = [now["latents"]]
            on_step(step + 1, run.steps)
            return {}

        negative = {} if run.negative_prompt_embeds is None else {"negative_prompt_embeds": run.negative_prompt_embeds}
        self._pipeline(
            prompt_embeds=run.prompt_embeds,
            **negative,
            height=rows * PIXELS,
            width=columns * PIXELS,
            num_inference_steps=run.steps,
            guidance_scale=run.guidance_scale,
            latents=noise,
            output_type="latent",
            callback_on_step_end=keep_latents,
        )
        return unpack(tokens[0], rows=rows, columns=columns)

    def decode(self, latents: Tensor) -> Tensor:
        return decode.decode(self._autoencoder, latents)

    def image(self, decoded: Tensor) -> Image.Image:
        return decode.to_image(decoded)


def _unmodified(kind: Any, module: Any) -> Any:
    """Return an unmodified module of class `kind` over the weights of `module`, which rounds as AI Toolkit does."""
    with torch.device("meta"):
        plain = kind.from_config(module.config)
    plain.load_state_dict(module.state_dict(), assign=True)  # shares the tensors instead of copying them
    return plain.requires_grad_(False).eval()
