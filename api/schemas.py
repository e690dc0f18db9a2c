"""The wire: answers, and the request bodies that are not jobs; a job's is `shared.request`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from shared.job import AdapterReport, Engine, ImageFormat, ItemError, PipelineReport, Progress
from shared.request import Body, Text


class ReplayRequest(Body):
    """A training config whose sample previews are to be reproduced."""

    config: Annotated[str, Field(max_length=200_000)] = Field(description="The config file's text, YAML or JSON.")
    lora: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="Adapter under the adapter root; default `{name}/{name}.safetensors`."
    )


JobStatus = Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]


class Submitted(BaseModel):
    """Answer to a submit."""

    request_id: str
    status: Literal["queued"] = "queued"
    status_url: str
    result_url: str
    created_at: str
    warnings: list[str]


class ReplaySample(BaseModel):
    """Where one sample of the config is rendered: which request, and which of its images."""

    request_id: str
    index: int


class ReplaySubmitted(BaseModel):
    """Answer to a replay; `samples` are in the config's order."""

    requests: list[Submitted]
    samples: list[ReplaySample]
    warnings: list[str]


class ItemStatus(BaseModel):
    """One image's state; `progress` while it runs."""

    index: int
    status: JobStatus
    attempt: int
    progress: Progress | None
    error: ItemError | None


class WebhookStatus(BaseModel):
    """How far the message to `webhook_url` has come."""

    state: Literal["waiting", "delivered", "failed"]
    attempts: int
    error: str


class Status(BaseModel):
    """A job as it stands. `error` is the first failed item's message; each item has its own."""

    request_id: str
    status: JobStatus
    model: str
    cancel_requested: bool
    queue_position: int | None = Field(description="Queued items ahead, in accept order; null when none waits.")
    eta_s: float | None = Field(description="Rough seconds until the job ends; null while unknown.")
    progress: float = Field(description="Share of the job's denoising steps that are done, 0 to 1.")
    items: list[ItemStatus]
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: str | None
    warnings: list[str]
    webhook: WebhookStatus | None = Field(None, description="Null where the request has no `webhook_url`.")


class Image(BaseModel):
    """One finished image. Sizes are effective ones; `requested_*` is what the caller wrote.

    What the caller wrote is null where another version stored it in a way that this API cannot read.
    """

    index: int
    format: ImageFormat
    width: int
    height: int
    requested_width: int | None
    requested_height: int | None
    seed: int | None
    prompt: str | None
    sample_steps: int | None
    guidance_scale: float | None
    url: str
    url_expires_at: str
    sha256: str
    size_bytes: int
    adapters: list[AdapterReport]
    pipeline: PipelineReport
    timings: dict[str, float] = Field(description="Seconds by stage.")


class Outputs(BaseModel):
    """What a job produced so far; `videos` is always empty and stands for clients that read it."""

    images: list[Image]
    videos: list[Any] = []


class Result(BaseModel):
    """A job's images and how they were made; `outputs` is null until the first image is done."""

    request_id: str
    status: JobStatus
    outputs: Outputs | None
    error: str | None
    errors: list[ItemFailure]
    created_at: str
    finished_at: str | None
    metadata: dict[str, Any]


class ItemFailure(ItemError):
    """Why one image of the job is missing."""

    index: int


class JobLine(BaseModel):
    """One job in the listing."""

    request_id: str
    status: JobStatus
    model: str
    items: dict[str, int] = Field(description="Number of items by state.")
    created_at: str
    started_at: str | None
    finished_at: str | None


class JobList(BaseModel):
    """A page of jobs, newest first; pass `next_cursor` as `cursor` for the next."""

    data: list[JobLine]
    has_more: bool
    next_cursor: str | None


class AdapterLine(BaseModel):
    """One adapter file; see the `inspect` command for the same as a table."""

    path: str
    model: str
    sha256: str
    size_bytes: int
    refused: str | None = Field(description="Why a job with it would be refused; null when it would not.")
    kind: str | None
    ranks: list[int]
    dtypes: dict[str, int] = Field(description="Number of tensors by dtype.")
    layers: int
    matched: int | None = Field(description="Layers of them that the base model has; null while no worker loaded one.")
    unmatched: list[str]
    base_model_version: str | None = Field(description="What the file says that it was trained on.")
    name: str | None
    step: int | None
    trigger: str | None


class ModelLine(BaseModel):
    """One model that can be asked for; `slots` counts its live workers."""

    id: str
    title: str
    base_model: str
    resolution_divisor: int
    default_steps: int
    default_guidance_scale: float
    default_seed: int
    default_width: int
    default_height: int
    uses_negative_prompt: bool
    requires_control_image: bool = False
    is_video_model: bool = False
    license: str
    license_url: str
    slots: int
    engines: dict[Engine, int] = Field(description="Live workers that offer each engine.")
    base_revision: str | None


class ModelList(BaseModel):
    """The catalogue."""

    models: list[ModelLine]


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []


class FieldProblem(BaseModel):
    """One field at fault, by its path in the request body."""

    path: str
    message: str


Result.model_rebuild()
Problem.model_rebuild()
