"""The body of a job's result: its images, their parameters, and the errors of failed images."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from api.schemas.adapter_scale import ScaleRange, ScaleSources
from api.schemas.job_status import JobStatus
from shared.job import AdapterReport, ImageFormat, ItemError, PipelineReport, ReferenceReport, TokenReport


class ImageAdapter(AdapterReport):
    """The effect of one adapter on the transformer; it proves that an image is not the base model's."""

    scale_range: ScaleRange = None
    scale_sources: ScaleSources = ()
    network_multiplier: float = Field(description="The same as `multiplier`, by the name of the request.")


class ImageReference(ReferenceReport):
    """A reference image as it was used; a request can name it again as `upload:` and its `sha256`."""

    slot: int = Field(description="1 for `ctrl_img` and `ctrl_img_1`, 2 for `ctrl_img_2`, 3 for `ctrl_img_3`.")
    sha256: str = Field(description="SHA-256 of the image's file.")
    width: int = Field(description="Width in pixels after the image was scaled down and cropped.")
    height: int = Field(description="Height in pixels after the image was scaled down and cropped.")
    url: str = Field(
        "", description="Presigned URL of its file as it was uploaded, which expires with that of the image."
    )


class Image(BaseModel):
    """One finished image and the parameters that made it.

    Parameters of the request (`requested_width`, `requested_height`, `seed`, `prompt`, `neg`, `sample_steps`, `sigmas`
    and `guidance_scale`) are null if another version of this service stored them in a form that this one cannot read.
    """

    index: int = Field(description="Index of the image's prompt in the request.")
    format: ImageFormat
    width: int = Field(description="Width in pixels, rounded down to the model's divisor.")
    height: int = Field(description="Height in pixels, rounded down to the model's divisor.")
    requested_width: int | None = Field(description="Width as in the request.")
    requested_height: int | None = Field(description="Height as in the request.")
    seed: int | None = Field(description="The seed of the noise, even if it was drawn at random.")
    prompt: str | None = Field(description="The prompt with its trigger word filled in.")
    neg: str | None = Field(description="The negative prompt; empty if none was used.")
    sample_steps: int | None = Field(description="Denoising steps; the number of `sigmas`, if there are any.")
    sigmas: list[float] | None = Field(
        None, description="Noise levels that the request gave; null for those of AI Toolkit's previews."
    )
    guidance_scale: float | None
    preset: str | None = Field(
        None, description="The request's preset, which gave what the prompt left open; null without one."
    )
    url: str = Field(description="Presigned URL of the file; anyone who has it can fetch the image.")
    url_expires_at: str = Field(description="When `url` stops working; fetch the result again for a new one.")
    thumbnail_url: str | None = Field(
        None,
        description="Presigned URL of a WebP copy whose longer side has at most 320 pixels, valid as long as `url`. "
        "Null if an earlier version rendered the image, or the copy could not be stored.",
    )
    sha256: str = Field(description="SHA-256 of the file.")
    size_bytes: int = Field(description="Size of the file.")
    adapters: list[ImageAdapter] = Field(description="What each adapter changed in the base model.")
    references: list[ImageReference] = Field(
        [], description="The reference images that were used, in their order; empty for an image made from text alone."
    )
    tokens: TokenReport | None = Field(
        None,
        description="Lengths of the prompt and of the negative prompt in tokens, with the model's chat template. The "
        "model reads the first `limit` of them. Null if an earlier version rendered the image.",
    )
    pipeline: PipelineReport = Field(description="The software, precision and device that rendered the image.")
    timings: dict[str, float] = Field(description="Seconds spent in each stage.")
    warnings: list[str] = Field(
        [],
        description="What the worker found out about this image, such as a prompt whose end was cut; "
        "`metadata.warnings` has those of the request.",
    )


class ImageLine(Image):
    """One image in the listing of images, with what its job says."""

    request_id: str = Field(description="The job of the image.")
    model: str
    tenant: str = Field(description="Owner of the job.")
    created_at: str = Field(description="When the job was accepted.")
    finished_at: str | None = Field(description="When the job ended; null while other images of it are not finished.")


class ImageList(BaseModel):
    """One page of finished images: those of the newest job first, in the order of its prompts."""

    data: list[ImageLine] = Field(
        description="A page looks at 1,000 images. If few match, it is short or empty although `has_more` is true."
    )
    has_more: bool = Field(
        description="Whether more images follow. Read on until it is false, also after an empty page."
    )
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")


class Outputs(BaseModel):
    """The images that are finished so far."""

    images: list[Image]
    videos: list[Any] = Field([], description="Always empty; present for clients of ai-toolkit-inference.")


class ItemFailure(ItemError):
    """The reason why one image is missing: it failed, or was canceled because `deadline_s` had passed."""

    index: int = Field(description="Index of its prompt in the request.")


class Result(BaseModel):
    """A job's images. A failed or canceled job keeps the images that it finished."""

    request_id: str
    status: JobStatus
    outputs: Outputs | None = Field(description="Null until the first image is finished.")
    error: str | None = Field(description="Message of the first image with an error.")
    errors: list[ItemFailure] = Field(
        description="One entry for each image that failed, or was canceled because `deadline_s` had passed."
    )
    created_at: str
    finished_at: str | None = Field(description="Null while the job runs; more images may follow.")
    metadata: dict[str, Any] = Field(description="Model, warnings and timings.")
