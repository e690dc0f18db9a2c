"""The request for images in OpenAI's form, and the job that renders it.

Source:
    https://platform.openai.com/docs/api-reference/images
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from shared.catalog import find_model
from shared.errors import InvalidRequest
from shared.job import AdapterMode, Engine, ImageFormat
from shared.request import (
    MAX_SIDE,
    MIN_SIDE,
    STEPS_AND_SIGMAS,
    Guidance,
    InferenceRequest,
    Loras,
    Priority,
    PromptItem,
    Seed,
    Sigmas,
    Steps,
    StrictModel,
    Text,
)

#: Images of one request, as in OpenAI's interface.
MAX_IMAGES: Final = 10
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")

ResponseFormat = Literal["url", "b64_json"]


class GenerationRequest(StrictModel):
    """Images from one prompt. The fields after `user` are this service's own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"not": STEPS_AND_SIGMAS})

    prompt: Text = Field(description="Text of the image. `[trigger]` is replaced by the trigger word.")
    model: str = Field("flux2", description="Id of the model, from `GET /v1/models`.")
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = Field(1, description="Number of images.")
    size: str = Field(
        "auto",
        description="`WIDTHxHEIGHT` in pixels, or `auto` for the model's default.",
        pattern=r"^(auto|\d{1,5}x\d{1,5})$",
        examples=["1024x1024"],
    )
    response_format: ResponseFormat = Field("url", description="A presigned URL for each image, or its file in base64.")
    output_format: ImageFormat = Field("png", description="File format.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Without effect: every image is opaque.")
    moderation: str | None = Field(None, description="Without effect.")
    output_compression: int | None = Field(None, description="Without effect.")
    quality: str | None = Field(None, description="Without effect; `sample_steps` decides.")
    stream: Literal[False] | None = Field(None, description="Answers are never streamed.")
    style: str | None = Field(None, description="Without effect.")
    user: str | None = Field(None, description="Without effect.")
    loras: Loras = Field([], description="As in `POST /v1/inference`.")
    seed: Seed | None = Field(
        None, description="Seed of the first image; each further one adds 1. -1 draws all at random. Default: 42."
    )
    sample_steps: Steps | None = Field(None, description="As in `POST /v1/inference`.")
    sigmas: Sigmas | None = Field(None, description="As in `POST /v1/inference`.")
    guidance_scale: Guidance | None = Field(None, description="As in `POST /v1/inference`.")
    neg: Text | None = Field(None, description="As in `POST /v1/inference`.")
    trigger_word: Text | None = Field(None, description="As in `POST /v1/inference`.")
    engine: Engine = Field("exact", description="As in `POST /v1/inference`.")
    adapter_mode: AdapterMode | None = Field(None, description="As in `POST /v1/inference`.")
    preset: Text | None = Field(None, description="As in `POST /v1/inference`.", examples=["turbo"])
    priority: Priority = Field(5, description="As in `POST /v1/inference`.")

    def job(self, references: Sequence[str] = ()) -> InferenceRequest:
        """Return the job that renders the request.

        Args:
            references: addresses of up to three reference images.

        Raises:
            ModelNotFound: the catalogue has no such model.
            InvalidRequest: the size is not one that this service renders.
        """
        width, height = self._size()
        images = {f"ctrl_img_{slot}": address for slot, address in enumerate(references, start=1)}
        prompts = [
            PromptItem(
                prompt=self.prompt,
                width=width,
                height=height,
                seed=self._seed(number),
                sample_steps=self.sample_steps,
                sigmas=self.sigmas,
                guidance_scale=self.guidance_scale,
                neg=self.neg,
                **images,
            )
            for number in range(self.n)
        ]
        return InferenceRequest(
            model=self.model,
            prompts=prompts,
            loras=self.loras,
            trigger_word=self.trigger_word,
            engine=self.engine,
            adapter_mode=self.adapter_mode,
            preset=self.preset,
            output_format=self.output_format,
            priority=self.priority,
        )

    def _size(self) -> tuple[int, int]:
        model = find_model(self.model)
        found = _SIZE.fullmatch(self.size)
        if found is None:
            return model.default_width, model.default_height
        width, height = int(found[1]), int(found[2])
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
            raise InvalidRequest(
                f"{self.size} is no size that can be rendered; use {MIN_SIDE} to {MAX_SIDE} pixels", field="size"
            )
        return width, height

    def _seed(self, number: int) -> int | None:
        if self.seed is None or self.seed == -1:
            return self.seed
        # Beyond the largest seed they start again.
        return (self.seed + number) % 2**63
