"""The models that jobs can name, with the defaults of their requests and their licences.

The worker reads facts about the weights (widths, depths) from the checkpoint's tensors.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace

from shared.errors import InvalidRequest, ModelNotFound
from shared.job import ENGINES, FEATURES, pools


@dataclass(frozen=True)
class Preset:
    """Values by name for what the prompts of a request leave open.

    Attributes:
        sigmas: noise level at the beginning of each step; None if the preset gives a number of steps or neither.
        adapter: where the adapter that the preset is made for is published; None if it needs none.
    """

    name: str
    title: str
    sigmas: tuple[float, ...] | None = None
    sample_steps: int | None = None
    guidance_scale: float | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Model:
    """One entry of `/v1/models`.

    Attributes:
        transformer_file: BFL's single-file transformer inside `base_model`.
        autoencoder_file: BFL's single-file autoencoder, inside `autoencoder_repository`.
        autoencoder_repository: repository of the autoencoder if the weights' folder has none; None means `base_model`.
        resolution_divisor: width and height are rounded down to a multiple of this, in pixels.
        uses_negative_prompt: False for guidance-distilled models, where `neg` has no effect.
        distilled_from: id of the model from which this one was distilled to few steps; None if it was not. Both have
            the same layers, so adapters of that model run on this one too.
        strips_image_token: whether AI Toolkit removes `[IMG]` from prompts before it encodes them.
    """

    id: str
    title: str
    base_model: str
    transformer_file: str
    autoencoder_file: str
    autoencoder_repository: str | None
    text_encoder: str
    resolution_divisor: int
    default_steps: int
    default_guidance_scale: float
    default_seed: int
    default_width: int
    default_height: int
    uses_negative_prompt: bool
    strips_image_token: bool
    license: str
    license_url: str
    distilled_from: str | None = None
    presets: tuple[Preset, ...] = ()

    def runs_adapters_of(self, trained_on: str) -> bool:
        """Return whether an adapter that was trained on the model with this id may be requested with this model."""
        # Not the reverse: an adapter of a distilled model was trained for few steps without guidance.
        return trained_on in (self.id, self.distilled_from)

    def find_preset(self, name: str) -> Preset:
        """Return the preset with this name.

        Raises:
            InvalidRequest: names the presets that exist.
        """
        for preset in self.presets:
            if preset.name == name:
                return preset
        known = f"use one of: {', '.join(preset.name for preset in self.presets)}" if self.presets else "leave it out"
        raise InvalidRequest(f"the model {self.id!r} has no preset {reprlib.repr(name)}; {known}", field="preset")


# The card of https://huggingface.co/fal/FLUX.2-dev-Turbo passes diffusers' pipeline a guidance of 2.5 and the levels
# 1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031, which the pipeline then shifts; they undo its shift for
# 8 steps at 1024x1024. These are the levels at which it denoises: 3t / (1 + 2t) for eight t from 1 to 0.001. Without
# the shift, the card's list would denoise from 1.0 to 0.65 in the first step.
TURBO = Preset(
    name="turbo",
    title="8 steps, with the Turbo LoRA",
    sigmas=(1.0, 0.9474, 0.8825, 0.8003, 0.6928, 0.5462, 0.3347, 0.003),
    guidance_scale=2.5,
    adapter="hf://fal/FLUX.2-dev-Turbo/flux.2-turbo-lora.safetensors",
)

FLUX2_DEV = Model(
    id="flux2",
    title="FLUX.2 [dev]",
    base_model="black-forest-labs/FLUX.2-dev",
    transformer_file="flux2-dev.safetensors",
    autoencoder_file="ae.safetensors",
    autoencoder_repository=None,
    # AI Toolkit previews with this release; the text_encoder folder in FLUX.2-dev's own repository is another one.
    text_encoder="mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    resolution_divisor=16,
    default_steps=25,
    default_guidance_scale=4.0,
    default_seed=42,
    default_width=1024,
    default_height=1024,
    uses_negative_prompt=False,
    strips_image_token=True,
    license="FLUX [dev] Non-Commercial License",
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
    presets=(TURBO,),
)

FLUX2_KLEIN_4B = Model(
    id="flux2_klein_4b",
    title="FLUX.2 [klein] base 4B",
    base_model="black-forest-labs/FLUX.2-klein-base-4B",
    transformer_file="flux-2-klein-base-4b.safetensors",
    autoencoder_file="ae.safetensors",
    autoencoder_repository="ai-toolkit/flux2_vae",
    text_encoder="Qwen/Qwen3-4B",
    resolution_divisor=16,
    default_steps=25,
    default_guidance_scale=4.0,
    default_seed=42,
    default_width=1024,
    default_height=1024,
    uses_negative_prompt=True,
    strips_image_token=False,
    license="Apache License 2.0",
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-base-4B",
)

FLUX2_KLEIN_9B = replace(
    FLUX2_KLEIN_4B,
    id="flux2_klein_9b",
    title="FLUX.2 [klein] base 9B",
    base_model="black-forest-labs/FLUX.2-klein-base-9B",
    transformer_file="flux-2-klein-base-9b.safetensors",
    text_encoder="Qwen/Qwen3-8B",
    license="FLUX Non-Commercial License",
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B",
)

FLUX2_KLEIN_4B_DISTILLED = replace(
    FLUX2_KLEIN_4B,
    id="flux2_klein_4b_distilled",
    title="FLUX.2 [klein] 4B, distilled to 4 steps",
    base_model="black-forest-labs/FLUX.2-klein-4B",
    transformer_file="flux-2-klein-4b.safetensors",
    default_steps=4,
    # One pass for each step: classifier-free guidance begins above 1.
    default_guidance_scale=1.0,
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-4B",
    distilled_from=FLUX2_KLEIN_4B.id,
)

FLUX2_KLEIN_9B_DISTILLED = replace(
    FLUX2_KLEIN_9B,
    id="flux2_klein_9b_distilled",
    title="FLUX.2 [klein] 9B, distilled to 4 steps",
    base_model="black-forest-labs/FLUX.2-klein-9B",
    transformer_file="flux-2-klein-9b.safetensors",
    default_steps=4,
    default_guidance_scale=1.0,
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-klein-9B",
    distilled_from=FLUX2_KLEIN_9B.id,
)

MODELS: dict[str, Model] = {
    model.id: model
    for model in (FLUX2_DEV, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, FLUX2_KLEIN_4B_DISTILLED, FLUX2_KLEIN_9B_DISTILLED)
}


def find_model(model_id: str) -> Model:
    """Return the model with this id.

    Raises:
        ModelNotFound: names the models that exist.
    """
    try:
        return MODELS[model_id]
    except KeyError:
        raise ModelNotFound(
            f"Model {reprlib.repr(model_id)} is not supported; use one of: {', '.join(MODELS)}", field="model"
        ) from None


#: Every pool of workers that a job can wait for.
POOLS = tuple(name for model in MODELS for name in pools(model, ENGINES, FEATURES))
