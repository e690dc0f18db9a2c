"""The request body of a job, with the names of ai-toolkit-inference's API.

The API receives it over HTTP, and `flux2 render` reads it from a file. It includes the fields that only other models of
that API use (video), so that any request JSON of that API can be parsed; `shared.resolve` refuses or
ignores them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo
from pydantic.config import JsonDict

from shared.catalog import MODELS
from shared.job import AdapterMode, AdapterPart, Engine, ImageFormat, WebhookEvent
from shared.json_schema import WITHOUT_NUL
from shared.noise_levels import MAX_STEPS, check_noise_levels
from shared.prompt import MAX_TEXT


def _refuse_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_refuse_nul), WITHOUT_NUL]
#: The longest deadline of a job: 30 days.
MAX_DEADLINE_S: Final = 30 * 86_400
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
ModelId = Annotated[
    str,
    Field(
        description="Id of the model, from `GET /v1/models`.",
        examples=["flux2"],
        json_schema_extra={"enum": list(MODELS)},
    ),
]

#: Bounds of an image's width and height in pixels.
MIN_SIDE, MAX_SIDE = 64, 4096
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[FiniteFloat, Field(ge=0, le=20)]
Seed = Annotated[int, Field(ge=-1, lt=2**63)]
Priority = Annotated[int, Field(ge=0, le=9)]


class StrictModel(BaseModel):
    """A part of a request body. Unknown fields are refused."""

    # Ignoring a misspelt `sample_steps` would render thousands of wrong images.
    model_config = ConfigDict(extra="forbid")


#: The example of the reference API's flux2 page, letter for letter.
EXAMPLE_REQUEST: dict[str, Any] = {
    "model": "flux2",
    "trigger_word": "sks",
    "prompts": [
        {
            "prompt": "[trigger] a photo of a person",
            "width": 1024,
            "height": 1024,
            "seed": 42,
            "sample_steps": 25,
            "guidance_scale": 4.0,
            "neg": "",
        }
    ],
    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 1.0}],
}


class LoraItem(StrictModel):
    """One adapter. Several adapters are merged in order."""

    path: Annotated[Text, Field(min_length=1)] = Field(
        description="File: relative to the adapter root, or `hf://OWNER/REPO/FILE@REVISION`, `s3://BUCKET/KEY`, an "
        "`https://` link, or `upload:NAME@SHA256`.",
        examples=["my_lora_job/my_lora.safetensors"],
    )
    network_multiplier: Annotated[FiniteFloat, Field(ge=-2, le=2)] | None = Field(
        None, description="Strength of the adapter: 0 is the base model, 1 is as trained. Default: 1."
    )
    transformer: Literal["low", "high"] | None = Field(
        None, description="Refused: only mixture-of-experts models have two transformers."
    )

    # Left out of a dump by default: the identity of a body must not change for requests without them.
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None,
        description="sha256 of the file, in lower-case hexadecimal; a file with other bytes is refused. Needed for a "
        "link whose host states no strong ETag.",
        exclude_if=lambda digest: digest is None,
    )
    ignore: list[AdapterPart] | None = Field(
        None,
        description='Parts of the file to leave out: `["text_encoder"]` for a file that also updates a text encoder, '
        "which no adapter changes here. The result says how many layers were left out.",
        exclude_if=lambda parts: not parts,
    )

    @property
    def multiplier(self) -> float:
        """The strength to render with; 1 if the caller gave none."""
        return 1.0 if self.network_multiplier is None else self.network_multiplier

    @property
    def ignored_parts(self) -> tuple[AdapterPart, ...]:
        """Each part to leave out, once."""
        return tuple(sorted(set(self.ignore or ())))


Loras = Annotated[list[LoraItem], Field(max_length=16)]

#: The fields that may give each reference image, by slot; of several, the first that is given counts.
REFERENCE_FIELDS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ctrl_img", "ctrl_img_1"),
    2: ("ctrl_img_2",),
    3: ("ctrl_img_3",),
}

_REFERENCE: Final = (
    "an `https://`, `s3://` or `hf://` address, `upload:SHA256` from `POST /v1/uploads`, or the file in base64, also "
    "as a data URL"
)


class ReferenceText(NamedTuple):
    """The text that gives a reference image, and the field that holds it."""

    slot: int
    field: str
    text: str


def _check_sigmas(levels: list[float], info: ValidationInfo) -> list[float]:
    if info.data.get("sample_steps") is not None:
        raise ValueError("sample_steps is given too, and each level is a step; leave one of the two out")
    check_noise_levels(levels)
    return levels


#: Noise levels instead of `sample_steps`, a field that a model with both has before them.
Sigmas = Annotated[
    list[Annotated[FiniteFloat, Field(gt=0, le=1)]],
    Field(min_length=1, max_length=MAX_STEPS, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_check_sigmas),
]
#: What `Sigmas` refuses beyond its own schema.
STEPS_AND_SIGMAS: Final[JsonDict] = {
    "properties": {"sample_steps": {"type": "integer"}, "sigmas": {"type": "array"}},
    "required": ["sample_steps", "sigmas"],
}


class PromptItem(StrictModel):
    """One image."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"not": STEPS_AND_SIGMAS})

    prompt: Text = Field(description="Text of the image. `[trigger]` is replaced by the trigger word.")
    trigger_word: Text | None = Field(None, description="Trigger word of this prompt, instead of the request's.")
    width: Side | None = Field(
        None, description="Width in pixels, rounded down to a multiple of the model's divisor (16). Default: 1024."
    )
    height: Side | None = Field(
        None, description="Height in pixels, rounded down to a multiple of the model's divisor (16). Default: 1024."
    )
    sample_steps: Steps | None = Field(
        None, description="Denoising steps, at the noise levels of AI Toolkit's previews. Default: 25."
    )
    guidance_scale: Guidance | None = Field(None, description="How closely the image follows the prompt. Default: 4.0.")
    seed: Seed | None = Field(
        None,
        description="Seed of the noise. -1 draws a random one, which the result reports. Default: 42 plus the index of "
        "the prompt.",
    )
    neg: Text | None = Field(
        None, description="Negative prompt. Guidance-distilled models (FLUX.2 [dev]) ignore it with a warning."
    )
    sampler: Text | None = Field(None, description="Ignored with a warning: the trainer's own sampler is always used.")
    num_frames: int | None = Field(None, description="Ignored with a warning: for video models only.")
    fps: int | None = Field(None, description="Ignored with a warning: for video models only.")
    resolution: Literal["Default", "High"] | None = Field(
        None, description="Ignored with a warning: for video models only."
    )
    ctrl_img: str | None = Field(
        None,
        description=f"First reference image, which the model edits or takes its subject from: {_REFERENCE}. PNG, JPEG, "
        "WebP or BMP, each side at least 64 pixels and at most 8 times the other. More than one megapixel is scaled "
        "down, as AI Toolkit's previews do.",
    )
    ctrl_img_1: str | None = Field(None, description="The same as `ctrl_img`, which takes its place if both are given.")
    ctrl_img_2: str | None = Field(None, description="Second reference image, as `ctrl_img`.")
    ctrl_img_3: str | None = Field(None, description="Third reference image, as `ctrl_img`.")
    # After `sample_steps`, see `Sigmas`. Left out of a dump by default: the identity of a body must not change for
    # requests without it.
    sigmas: Sigmas | None = Field(
        None,
        description="Noise level at the beginning of each denoising step, instead of `sample_steps`: strictly "
        "decreasing, each above 0 and at most 1, and used as given, without a shift. The final 0 is implied. Not with "
        "the engine `ai-toolkit`.",
        examples=[[1.0, 0.75, 0.5, 0.25]],
        exclude_if=lambda levels: levels is None,
    )

    @property
    def reference_texts(self) -> list[ReferenceText]:
        """The reference images that count, in the order of their slots."""
        # An empty text gives no image, as in the reference API.
        given = {
            slot: [(name, text) for name in names if (text := getattr(self, name))]
            for slot, names in REFERENCE_FIELDS.items()
        }
        return [ReferenceText(slot, *texts[0]) for slot, texts in given.items() if texts]


# `reject_unsupported_fields` refuses them with its own code.
_FAST_AND_LIVE: Final[JsonDict] = {
    "properties": {"engine": {"const": "fast"}, "adapter_mode": {"const": "live"}},
    "required": ["engine", "adapter_mode"],
}


class InferenceRequest(StrictModel):
    """A job: one base model, one list of adapters, and one image for each prompt."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_REQUEST], "not": _FAST_AND_LIVE})

    model: ModelId
    prompts: Annotated[list[PromptItem], Field(min_length=1)] = Field(description="The images to render.")
    loras: Loras = Field(description="Adapters, merged in order. Pass an empty list to render with the base model.")
    trigger_word: Text | None = Field(None, description="Replaces `[trigger]` in every prompt.")
    hf_token: SecretStr | None = Field(
        None,
        description="Accepted for compatibility, but not used, stored or logged: workers have their own.",
    )
    engine: Engine = Field(
        "exact",
        description="The code that renders. `exact` gives AI Toolkit's pixels. `ai-toolkit` runs AI Toolkit's own "
        "classes, on workers that have a checkout of it. `fast` multiplies in float8, which takes less time and gives "
        "other pixels, on workers with `FLUX2_MODEL_PRECISION=fp8`.",
    )
    adapter_mode: AdapterMode | None = Field(
        None,
        description="`merged` adds adapters to the weights once. `live` computes them next to the weights in each "
        "step, which is slower; AI Toolkit previews a DoRA, and samples with several multipliers, that way. Default: "
        "`merged` if the worker's precision allows it.",
    )
    # Left out of a dump by default, as `deadline_s`.
    preset: Text | None = Field(
        None,
        description="Name of one of the model's `presets` in `GET /v1/models`. It gives each prompt the noise levels "
        "or steps, and the guidance, that the prompt leaves open.",
        examples=["turbo"],
        exclude_if=lambda name: name is None,
    )
    output_format: ImageFormat = Field(
        "png", description="File format. PNG is lossless. Every file holds the parameters that made it."
    )
    webhook_url: Annotated[Text, Field(max_length=2048)] | None = Field(
        None, description="URL that receives a signed webhook when the job ends. Must be public https."
    )
    # Left out of a dump by default, as `deadline_s`.
    webhook_events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=6)] | None = Field(
        None,
        description="Messages that `webhook_url` receives; `request.*` stands for all about the end of the job. "
        "`item.succeeded` and `item.failed` are about each image. Default: `request.*`.",
        exclude_if=lambda events: events is None,
    )
    priority: Priority = Field(5, description="0 is rendered first, 9 last.")
    # Left out of a dump by default: the identity of a body must not change for requests without it.
    deadline_s: Annotated[FiniteFloat, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None,
        description="Seconds after the accept from which no image of the job is started: those that wait for a worker "
        "then are canceled with the error `DEADLINE_EXCEEDED`, and running ones finish. At most 30 days.",
        exclude_if=lambda seconds: seconds is None,
    )
    kv_cache: bool | None = Field(None, description="Ignored with a warning: for other models only.")
    match_target_res: bool | None = Field(None, description="Ignored with a warning: for other models only.")
