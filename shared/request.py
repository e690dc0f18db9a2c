"""The request body, with the names of ai-toolkit-inference's API.

Unknown fields are refused, since a misspelt `sample_steps` would otherwise render thousands of wrong images. Fields
that other models of that API use (video, control images) are known here and refused or ignored by name in
`shared.resolve`, so its request JSON is understood whole. The API takes it over HTTP, `flux2 render` from a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from shared.job import AdapterMode, Engine, ImageFormat


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


#: Characters of a prompt, as it is written and with its trigger words in it.
MAX_TEXT = 10_000

Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_no_nul)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """A request body, whole or in part: nothing in it goes unread."""

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


class LoraItem(Body):
    """One adapter; several are merged in order."""

    path: Annotated[Text, Field(min_length=1)] = Field(
        description="File relative to the adapter root.", examples=["my_lora_job/my_lora.safetensors"]
    )
    network_multiplier: Annotated[Finite, Field(ge=-2, le=2)] | None = Field(
        None, description="Strength: 0 is the base model, 1 as trained; default 1."
    )
    transformer: Literal["low", "high"] | None = Field(None, description="Mixture-of-experts models only; refused.")


class PromptItem(Body):
    """One image."""

    prompt: Text = Field(description="`[trigger]` is replaced by the trigger word.")
    trigger_word: Text | None = Field(None, description="Overrides the request's trigger word.")
    width: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        None, description="Pixels, floored to the model's divisor; default 1024."
    )
    height: Annotated[int, Field(ge=64, le=4096)] | None = Field(
        None, description="Pixels, floored to the model's divisor; default 1024."
    )
    sample_steps: Annotated[int, Field(ge=1, le=150)] | None = Field(None, description="Default 25.")
    guidance_scale: Annotated[Finite, Field(ge=0, le=20)] | None = Field(None, description="Default 4.0.")
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = Field(
        None, description="Default 42 + the prompt's index; -1 draws one and reports it."
    )
    neg: Text | None = Field(None, description="Negative prompt; guidance-distilled models ignore it with a warning.")
    sampler: Text | None = Field(None, description="Ignored with a warning: the trainer's own sampler is used.")
    num_frames: int | None = Field(None, description="Video models only; ignored with a warning.")
    fps: int | None = Field(None, description="Video models only; ignored with a warning.")
    resolution: Literal["Default", "High"] | None = Field(None, description="Video models only; ignored.")
    ctrl_img: str | None = Field(None, description="Control image; refused: this model renders from text.")
    ctrl_img_1: str | None = Field(None, description="As `ctrl_img`.")
    ctrl_img_2: str | None = Field(None, description="As `ctrl_img`.")
    ctrl_img_3: str | None = Field(None, description="As `ctrl_img`.")


class InferenceRequest(Body):
    """A job: one base model, one list of adapters, one image a prompt."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_REQUEST]})

    model: str = Field(description="Model id from `/v1/models`.", examples=["flux2"])
    prompts: Annotated[list[PromptItem], Field(min_length=1)]
    loras: Annotated[list[LoraItem], Field(max_length=16)] = Field(
        description="Adapters, merged in order; an explicit empty list is the base model."
    )
    trigger_word: Text | None = Field(None, description="Replaces `[trigger]` in every prompt.")
    hf_token: SecretStr | None = Field(None, description="Accepted, never stored or logged: workers use their own.")
    engine: Engine = Field(
        "exact",
        description="`ai-toolkit` runs AI Toolkit's own classes, on workers that have a checkout of it; `fast` "
        "multiplies in float8, on workers with `FLUX2_MODEL_PRECISION=fp8`: other pixels in less time.",
    )
    adapter_mode: AdapterMode | None = Field(
        None,
        description="`merged` into the weights, or `live` beside them in each step, as AI Toolkit previews a DoRA and "
        "samples of several multipliers; default: what the worker's precision allows, merged if it can.",
    )
    output_format: ImageFormat = Field("png", description="PNG is lossless; all carry the parameters inside.")
    webhook_url: Annotated[Text, Field(max_length=2048)] | None = Field(
        None, description="Is sent a signed message when the request has ended; https, and a public address."
    )
    priority: Annotated[int, Field(ge=0, le=9)] = Field(5, description="0 first, 9 last.")
    kv_cache: bool | None = Field(None, description="Other models only; ignored with a warning.")
    match_target_res: bool | None = Field(None, description="Other models only; ignored with a warning.")
