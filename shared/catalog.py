"""The models that can be served: what a request may leave out, and what the licence is.

Facts about the weights themselves (widths, depths) are not here: they are read off the checkpoint's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One entry of `/v1/models`.

    Attributes:
        transformer_file: BFL's single-file transformer inside `base_model`.
        autoencoder_file: BFL's single-file autoencoder inside `base_model`.
        resolution_divisor: width and height are floored to a multiple of it, in pixels.
        uses_negative_prompt: False for guidance-distilled models, where `neg` has no effect.
    """

    id: str
    title: str
    base_model: str
    transformer_file: str
    autoencoder_file: str
    text_encoder: str
    resolution_divisor: int
    default_steps: int
    default_guidance_scale: float
    default_seed: int
    default_width: int
    default_height: int
    uses_negative_prompt: bool
    license: str
    license_url: str


FLUX2_DEV = Model(
    id="flux2",
    title="FLUX.2 [dev]",
    base_model="black-forest-labs/FLUX.2-dev",
    transformer_file="flux2-dev.safetensors",
    autoencoder_file="ae.safetensors",
    # What ai-toolkit previews with; the FLUX.2-dev repository's own text_encoder folder is another release.
    text_encoder="mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    resolution_divisor=16,
    default_steps=25,
    default_guidance_scale=4.0,
    default_seed=42,
    default_width=1024,
    default_height=1024,
    uses_negative_prompt=False,
    license="FLUX [dev] Non-Commercial License",
    license_url="https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
)

MODELS: dict[str, Model] = {model.id: model for model in (FLUX2_DEV,)}
