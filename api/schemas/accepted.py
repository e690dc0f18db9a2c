"""The bodies of accepted jobs: the answer to a submit, and request and answer of a replay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from shared.request import StrictModel, Text


class Submitted(BaseModel):
    """An accepted job. It is stored durably: it survives a restart of every process."""

    request_id: str = Field(description="Id of the job.")
    status: Literal["queued"] = Field(
        "queued", description="The reference API's word in this answer; the job's status calls it `in_queue`."
    )
    status_url: str = Field(description="URL to poll for the job's progress.")
    result_url: str = Field(description="URL of the job's images.")
    created_at: str = Field(description="When the job was accepted; RFC 3339, UTC.")
    warnings: list[str] = Field(
        description="Fields that were ignored or changed, and reasons why the job may have to wait."
    )


# Short, because every sample may name the same image.
ImageName = Annotated[str, Field(min_length=1, max_length=4096)]
ImageValue = Annotated[Text, Field(min_length=1, max_length=2048)]


class ReplayRequest(StrictModel):
    """A training config whose sample previews are rendered again."""

    config: Annotated[str, Field(max_length=200_000)] = Field(
        description="Text of the AI Toolkit config file, YAML or JSON."
    )
    lora: Annotated[Text, Field(min_length=1)] | None = Field(
        None,
        description="Adapter file, relative to the adapter root. Default: `{name}/{name}.safetensors`, with the "
        "config's name.",
    )
    # Left out of a dump by default: the identity of a body must not change for configs without images.
    images: Annotated[dict[ImageName, ImageValue], Field(max_length=3000)] = Field(
        {},
        description="Reference images of the samples. Maps the config's name for an image, e.g. its path on the "
        "trainer's host, to what `ctrl_img` of a prompt takes, except for the image's bytes: the `path` of "
        "`POST /v1/uploads`, or a link. Without it, a config with reference images is answered 422 with the code "
        "`REFERENCE_IMAGES_NEEDED` and their names in `images`.",
        exclude_if=lambda images: not images,
    )


class ReplaySample(BaseModel):
    """The image that reproduces one sample of the config."""

    request_id: str = Field(description="Job that renders it.")
    index: int = Field(description="Index of the image in that job.")


class ReplaySubmitted(BaseModel):
    """An accepted replay."""

    requests: list[Submitted] = Field(description="The jobs: one for each adapter strength in the samples.")
    samples: list[ReplaySample] = Field(description="One entry for each sample, in the config's order.")
    warnings: list[str] = Field(description="Why images may differ from the trainer's previews.")
