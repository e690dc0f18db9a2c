"""The bodies that describe models and adapter files."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.adapter_scale import ScaleRange, ScaleSources
from shared.job import AdapterPart, Engine
from shared.prompt import MAX_TEXT, MAX_TOKENS


class BlockLayers(BaseModel):
    """Layers of one type of block."""

    layers: int = Field(description="Layers that the adapter updates.")
    matched: int | None = Field(
        description="Number of `layers` that the base model has; null while no live worker has loaded the model."
    )


class AdapterLine(BaseModel):
    """One adapter file, as its header describes it. `flux2 inspect` prints the same."""

    path: str
    model: str = Field(description="The model that the adapter was checked against.")
    sha256: str | None = Field(
        description="SHA-256 of the file: the adapter's identity in results. Null for a link whose host states none."
    )
    size_bytes: int
    refused: str | None = Field(
        description="Why a job with this adapter would be refused; null if it would be accepted."
    )
    must_ignore: list[AdapterPart] = Field(
        description="Parts that a job must name in `loras[].ignore` to use the file, which is refused otherwise."
    )
    warnings: list[str] = Field(description="What a job with this adapter would be warned about.")
    trainer: str | None = Field(
        description="The tool that probably wrote the file, guessed from its metadata and keys."
    )
    kind: str | None = Field(description="E.g. `lora`, `lokr` or `diff`; null if unknown.")
    ranks: list[int] = Field(description="Distinct ranks, ascending.")
    scale_range: ScaleRange
    scale_sources: ScaleSources
    dtypes: dict[str, int] = Field(description="Number of tensors by data type.")
    blocks: dict[str, BlockLayers] = Field(description="Layers by type of block: `double`, `single` and `other`.")
    layers: int = Field(description="Layers that the adapter updates.")
    matched: int | None = Field(
        description="Number of `layers` that the base model has; null while no live worker has loaded the model."
    )
    unmatched: list[str] = Field(description="Layers that the base model does not have.")
    base_model_version: str | None = Field(description="Base model that the file names.")
    name: str | None = Field(description="Name that the trainer stored in the file.")
    step: int | None = Field(description="Training step that the trainer stored in the file.")
    trigger: str | None = Field(
        description="Most frequent tag that the trainer stored in the file: usually the trigger word."
    )


class AdapterFile(BaseModel):
    """One file under the adapter root, or one that was uploaded; it has not been read."""

    path: str = Field(
        description="Use it as `loras[].path`: a path relative to the adapter root, or `upload:NAME@SHA256`."
    )
    size_bytes: int
    modified_at: str = Field(description="When the file was last written or uploaded; RFC 3339, UTC.")
    sha256: str | None = Field(None, description="SHA-256 of an uploaded file; null for others, which are not read.")


class AdapterList(BaseModel):
    """One page of the adapter files in the order of their paths, followed by the uploaded ones."""

    data: list[AdapterFile]
    has_more: bool = Field(
        description="Whether more files follow. A page may be short, or empty, although more follow."
    )
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")


class PresetLine(BaseModel):
    """Values by name, for what the prompts of a request leave open."""

    name: str = Field(description="Value of `preset` in a request.")
    title: str
    sigmas: list[float] | None = Field(None, description="Noise levels; null if it gives none.")
    sample_steps: int | None = Field(None, description="Denoising steps; null if it gives none.")
    guidance_scale: float | None = Field(None, description="Null if it gives none.")
    adapter: str | None = Field(
        None, description="The published adapter that the preset is made for, to be named in `loras`; null for none."
    )


class ModelLine(BaseModel):
    """One model, its defaults and the workers that serve it now."""

    id: str
    title: str
    base_model: str = Field(description="Hugging Face repository of the base model.")
    resolution_divisor: int = Field(description="Width and height are rounded down to a multiple of this.")
    default_steps: int
    default_guidance_scale: float
    default_seed: int = Field(description="Seed of the first prompt; each later prompt adds 1.")
    default_width: int
    default_height: int
    uses_negative_prompt: bool
    distilled_from: str | None = Field(
        description="Model from which this one was distilled to few steps, and whose adapters run here too; else null."
    )
    presets: list[PresetLine] = Field([], description="What `preset` in a request may name.")
    requires_control_image: bool = False
    is_video_model: bool = False
    license: str
    license_url: str
    slots: int = Field(description="Live workers that serve this model.")
    engines: dict[Engine, int] = Field(description="Live workers by the engine that they offer.")
    base_revision: str | None = Field(
        description="Identity of the base model's files; null if no live worker has loaded them, or if workers differ."
    )


class Limits(BaseModel):
    """Limits of one request; the operator sets those of prompts, bodies and images."""

    max_prompts: int = Field(description="Prompts that one request may have; no more than the queue ever holds.")
    max_sweep_images: int = Field(description="Images that one sweep may have; no more than the queue ever holds.")
    max_sweep_jobs: int = Field(description="Jobs that one sweep may have.")
    max_body_bytes: int = Field(description="Size of a request body in bytes.")
    max_values: int = Field(description="JSON values of a request body; each of `sigmas` is one.")
    max_reference_images: int = Field(description="Different reference images that one request may name.")
    max_reference_bytes: int = Field(description="Size in bytes of the file of a reference image.")
    max_prompt_characters: int = Field(
        MAX_TEXT, description="Characters of a prompt, also with its trigger word filled in; more are refused."
    )
    max_prompt_tokens: int = Field(
        MAX_TOKENS,
        description="Tokens that a model reads of a prompt, together with its chat template; more are cut, and the "
        "image has a warning.",
    )


class OpenAIModel(BaseModel):
    """A model as OpenAI's interface describes it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Always 0: unknown.")
    owned_by: str = Field(description="Owner of the base model's repository.")


class ModelList(BaseModel):
    """All models that jobs can name; one without live workers accepts jobs, which wait."""

    models: list[ModelLine]
    limits: Limits = Field(description="Limits of one request; a client splits what is larger.")
    object: Literal["list"] = Field("list", description="With `data`, for clients of OpenAI's interface.")
    data: list[OpenAIModel] = Field([], description="The same models, for clients of OpenAI's interface.")
