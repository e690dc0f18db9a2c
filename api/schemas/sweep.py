"""The bodies of sweeps: the request, and the answers about one."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.schemas.job_result import Image
from shared.job import AdapterMode, AdapterPart, Engine, ImageFormat, ItemError
from shared.noise_levels import MAX_STEPS
from shared.request import MAX_DEADLINE_S, FiniteFloat, LoraItem, ModelId, PromptItem, StrictModel, Text

#: The states of sweeps, and in them of jobs and images.
SweepState = Literal["queued", "running", "succeeded", "failed", "canceled"]

#: The axes of a sweep, in the order of the answer.
AxisName = Literal["checkpoint", "multiplier", "seed", "prompt", "size", "steps", "guidance_scale"]

EXAMPLE_SWEEP: Final[dict[str, Any]] = {
    "model": "flux2",
    "trigger_word": "sks",
    "prompts": [{"prompt": "[trigger] a photo of a person"}, {"prompt": "[trigger] in the rain"}],
    "checkpoints": [
        {"path": "my_lora_job/my_lora_000000500.safetensors", "label": "500"},
        {"path": "my_lora_job/my_lora.safetensors", "label": "final"},
        {"path": None, "label": "base"},
    ],
    "multipliers": [0.6, 0.8, 1.0],
    "seeds": [42, 43],
}

_UNIQUE: Final[dict[str, Any]] = {"uniqueItems": True}


def _refuse_random(seed: int) -> int:
    if seed < 0:
        raise ValueError(
            f"{seed} cannot be a seed of an axis: a random one would differ in each image; list the seeds, such as "
            "[42, 43], or leave the axis out and write -1 in a prompt"
        )
    return seed


Seed = Annotated[int, Field(lt=2**63, json_schema_extra={"minimum": 0}), AfterValidator(_refuse_random)]
Multiplier = Annotated[FiniteFloat, Field(ge=-2, le=2)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
GuidanceScale = Annotated[FiniteFloat, Field(ge=0, le=20)]
# Not a tuple, whose schema some tools cannot read.
EtaRange = Annotated[list[float], Field(min_length=2, max_length=2)] | None
Label = Annotated[Text, Field(min_length=1, max_length=100)]


class SweepCheckpoint(StrictModel):
    """One value of the axis `checkpoint`: an adapter file, or the base model."""

    path: Annotated[Text, Field(min_length=1)] | None = Field(
        description="File, as `path` of an adapter in `POST /v1/inference`; null for the base model, which multipliers "
        "do not multiply."
    )
    label: Label | None = Field(
        None, description="Name of the checkpoint in the answers. Default: the file's name without its suffix, `base`."
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="As `sha256` of an adapter in `POST /v1/inference`."
    )
    ignore: list[AdapterPart] | None = Field(None, description="As `ignore` of an adapter in `POST /v1/inference`.")


class SweepSize(StrictModel):
    """One value of the axis `size`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Annotated[int, Field(ge=64, le=4096)] = Field(description="Width in pixels.")
    height: Annotated[int, Field(ge=64, le=4096)] = Field(description="Height in pixels.")


class SweepRequest(StrictModel):
    """Every combination of checkpoints, multipliers, prompts, sizes, steps, guidance scales and seeds.

    An axis that has values replaces what the prompts say; one that is empty leaves each prompt's own value.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_SWEEP]})

    model: ModelId
    prompts: Annotated[list[PromptItem], Field(min_length=1)] = Field(description="The values of the axis `prompt`.")
    trigger_word: Text | None = Field(None, description="Replaces `[trigger]` in every prompt.")
    checkpoints: list[SweepCheckpoint] = Field(
        [], description="Adapter files to compare. Each is merged before `loras`. Empty: `loras` alone are merged."
    )
    multipliers: list[Multiplier] = Field(
        [], description="Strengths of each checkpoint. Default: 1.", json_schema_extra=_UNIQUE
    )
    seeds: list[Seed] = Field(
        [],
        description="Seeds of the noise. Without them, a prompt that has no seed gets 42 plus its index in `prompts`, "
        "and one of -1 the same random seed in all of its images.",
        json_schema_extra=_UNIQUE,
    )
    sizes: list[SweepSize] = Field([], description="Sizes of the images.", json_schema_extra=_UNIQUE)
    steps: list[Steps] = Field(
        [], description="Numbers of denoising steps, also instead of a prompt's `sigmas`.", json_schema_extra=_UNIQUE
    )
    guidance_scales: list[GuidanceScale] = Field([], description="Guidance scales.", json_schema_extra=_UNIQUE)
    loras: Annotated[list[LoraItem], Field(max_length=15)] = Field(
        [], description="Adapters of every image, merged after the checkpoint, each with its own multiplier."
    )
    engine: Engine = Field("exact", description="As `engine` in `POST /v1/inference`.")
    adapter_mode: AdapterMode | None = Field(None, description="As `adapter_mode` in `POST /v1/inference`.")
    preset: Text | None = Field(None, description="As `preset` in `POST /v1/inference`.")
    output_format: ImageFormat = Field("png", description="As `output_format` in `POST /v1/inference`.")
    webhook_url: Annotated[Text, Field(max_length=2048)] | None = Field(
        None, description="URL that receives a signed webhook when a job of the sweep ends. Must be public https."
    )
    priority: Annotated[int, Field(ge=0, le=9)] = Field(5, description="0 is rendered first, 9 last.")
    deadline_s: Annotated[FiniteFloat, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None, description="As `deadline_s` in `POST /v1/inference`."
    )


class SweepJob(BaseModel):
    """One job of a sweep: images with the same adapters."""

    request_id: str
    checkpoint: str | None = Field(description="Label of its checkpoint; null if the sweep has no checkpoints.")
    multiplier: float | None = Field(description="Multiplier of its checkpoint; null for the base model.")


class SweepJobStatus(SweepJob):
    """The state of one job of a sweep."""

    status: SweepState


class SweepSubmitted(BaseModel):
    """An accepted sweep: all of its jobs are stored durably."""

    sweep_id: str
    status: Literal["queued"] = "queued"
    images: int = Field(description="Number of images.")
    jobs: list[SweepJob] = Field(
        description="The jobs, in the order in which they are queued: one for each adapter list, or several if that "
        "has more images than `max_prompts` of `GET /v1/models`."
    )
    status_url: str
    result_url: str
    cancel_url: str
    created_at: str = Field(description="When the sweep was accepted; RFC 3339 in UTC, like all times.")
    warnings: list[str] = Field(
        description="Fields that were ignored or changed, and reasons why the sweep may have to wait."
    )


class SweepEstimate(BaseModel):
    """What a sweep would take; nothing was accepted, and no file was read."""

    images: int = Field(description="Number of images.")
    jobs: int = Field(description="Number of jobs.")
    adapter_lists: int = Field(description="Number of different adapter lists: one slot merges each of them once.")
    pixel_steps: int = Field(description="Sum of width, height and steps multiplied, over the images.")
    megapixel_steps: float = Field(description="The same in the unit of `GET /v1/usage`.")
    gpu_s: float | None = Field(description="Expected seconds of GPUs, from recent images; null while unknown.")
    eta_s: float | None = Field(
        description="Expected seconds until the last image would end if the sweep were submitted now, from the times "
        "of recent images and the queue; null while unknown."
    )
    eta_range_s: EtaRange = Field(description="A low and a high estimate of the same.")
    price: str | None = Field(description="Decimal number, by the prices of `GET /v1/usage`; null without prices.")
    currency: str | None = Field(description="Currency of `price`.")


class SweepCounts(BaseModel):
    """The images of a sweep by state."""

    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int


class SweepLine(BaseModel):
    """One sweep in the listing."""

    sweep_id: str
    status: SweepState = Field(
        description="`running` once an image has been started. An ended sweep is `canceled` if an image was canceled, "
        "else `failed` if one failed."
    )
    model: str
    images: int
    counts: SweepCounts
    progress: float = Field(description="Share of the images that succeeded, 0 to 1.")
    created_at: str
    started_at: str | None
    finished_at: str | None


class SweepStatus(SweepLine):
    """The state of a sweep and of each of its jobs."""

    eta_s: float | None = Field(description="Estimated seconds until the last image ends; null while unknown.")
    eta_range_s: EtaRange = Field(description="A low and a high estimate of the same.")
    jobs: list[SweepJobStatus]
    warnings: list[str] = Field(description="The warnings of the answer to the submit.")


class SweepList(BaseModel):
    """One page of sweeps, newest first."""

    data: list[SweepLine] = Field(description="A page is short if the sweeps on it have many jobs.")
    has_more: bool = Field(description="Whether older sweeps follow.")
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")


class SweepAxis(BaseModel):
    """One axis of a sweep."""

    name: AxisName
    values: list[str | float | int | None] = Field(
        description="The values that images have, each once, in the order of the request. Those of `prompt` are the "
        "texts of the prompts; an image names its own by its index."
    )


class SweepCell(BaseModel):
    """One image of a sweep, and its values of the axes."""

    checkpoint: str | None = Field(description="Label of the checkpoint; null if the sweep has no checkpoints.")
    multiplier: float | None = Field(description="Multiplier of the checkpoint; null for the base model.")
    seed: int
    prompt: int = Field(description="Index of the prompt in the sweep.")
    size: str = Field(description="Width and height as in the request, like `1024x768`.")
    steps: int
    guidance_scale: float
    request_id: str = Field(description="Job of the image.")
    index: int = Field(description="Index of the image in its job.")
    status: SweepState
    image: Image | None = Field(description="The finished image, as in the result of its job.")
    error: ItemError | None = Field(description="Why the image failed, or that its deadline canceled it.")


class SweepResult(BaseModel):
    """One page of a sweep's images, in the order checkpoint, multiplier, prompt, size, steps, guidance scale, seed."""

    sweep_id: str
    status: SweepState
    model: str
    axes: list[SweepAxis]
    cells: list[SweepCell]
    has_more: bool = Field(description="Whether more images follow.")
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")
