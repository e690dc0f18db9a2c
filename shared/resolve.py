"""Turn a request into items, and fix every default, seed, size and trigger word when the job is accepted.

An item then determines its image's pixels completely, so an item that runs twice gives the same image.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import TypeVar

from shared.catalog import MODELS, Model, Preset
from shared.errors import InvalidRequest
from shared.job import SIGMAS_ENGINES, AdapterRef, ItemSpec
from shared.noise_levels import sigmas_refusal
from shared.prompt import MAX_TEXT, check_prompt, find_flags
from shared.request import REFERENCE_FIELDS, InferenceRequest, PromptItem

T = TypeVar("T", int, float)

#: Stands in prompts for the trigger word.
TRIGGER = "[trigger]"

#: Random seeds are drawn below this, as ai-toolkit's own are.
MAX_RANDOM_SEED = 2**32


def reject_unsupported_fields(request: InferenceRequest, model: Model) -> None:
    """Refuse fields that this service or the model does not support and cannot ignore.

    Raises:
        InvalidRequest: names the field, with the reference API's code.
    """
    # Ignoring them would give another image than the caller expects.
    for index, lora in enumerate(request.loras):
        if lora.transformer is not None:
            raise InvalidRequest(
                f"Model {request.model!r} has one transformer, so an adapter cannot be for {lora.transformer!r}; "
                "leave transformer out",
                code="MOE_FORMAT_NOT_SUPPORTED",
                field=f"loras[{index}].transformer",
            )
    if (request.engine, request.adapter_mode) == ("fast", "live"):
        raise InvalidRequest("the engine 'fast' only merges adapters; leave adapter_mode out", field="adapter_mode")
    if request.engine not in SIGMAS_ENGINES:
        for index, prompt in enumerate(request.prompts):
            if prompt.sigmas:
                raise InvalidRequest(sigmas_refusal(request.engine), field=f"prompts[{index}].sigmas")
    preset = _preset(request, model)
    if preset is not None and preset.sigmas and request.engine not in SIGMAS_ENGINES:
        raise InvalidRequest(f"preset {preset.name!r}: {sigmas_refusal(request.engine)}", field="preset")


def check_prompts(items: Sequence[ItemSpec]) -> None:
    """Refuse resolved prompts that no worker can render.

    Raises:
        InvalidRequest: names the prompt.
    """
    # After resolving, because a trigger word can complete an image token.
    for index, item in enumerate(items):
        if MODELS[item.model].strips_image_token:
            check_prompt(item.prompt, field=f"prompts[{index}].prompt")


def resolve_items(request: InferenceRequest, model: Model, adapters: Sequence[AdapterRef]) -> list[ItemSpec]:
    """Return one item for each prompt.

    Raises:
        InvalidRequest: a prompt is too long with its trigger word filled in, or the model has no such preset.
    """
    return [
        _item(request, prompt, index, model=model, adapters=adapters) for index, prompt in enumerate(request.prompts)
    ]


def collect_warnings(request: InferenceRequest, items: Sequence[ItemSpec], model: Model) -> list[str]:
    """Describe the fields that are ignored or changed; each kind of warning names only the first prompt."""
    return [
        *_ignored_fields(request, model),
        *_first(
            f"prompts[{index}]: {item.requested_width}x{item.requested_height} is rendered at "
            f"{item.width}x{item.height}: sizes are rounded down to a multiple of {model.resolution_divisor}"
            for index, item in enumerate(items)
            if (item.width, item.height) != (item.requested_width, item.requested_height)
        ),
        *_first(
            f"prompts[{index}].ctrl_img_1 has no effect: ctrl_img takes its place; for two images, use ctrl_img and "
            "ctrl_img_2"
            for index, prompt in enumerate(request.prompts)
            if prompt.ctrl_img and prompt.ctrl_img_1 and prompt.ctrl_img != prompt.ctrl_img_1
        ),
        *_first(
            # The reference API takes it for no image; a caller may have meant one.
            f"prompts[{index}].{name} is empty, so it gives no reference image; give one, or leave the field out"
            for index, prompt in enumerate(request.prompts)
            for names in REFERENCE_FIELDS.values()
            for name in names
            if getattr(prompt, name) == ""
        ),
        *_missing_adapter(request, model),
        *_distilled_settings(items, model),
        *_first(
            f"prompts[{index}].neg has no effect at a guidance_scale of {item.guidance_scale:g}; "
            f"{f'request {model.distilled_from}' if model.distilled_from else 'use more than 1'}"
            for index, item in enumerate(items)
            if item.neg and item.guidance_scale <= 1
        ),
        *_first(
            # Not refused: the trainer renders it, and it shows the effect of an adapter by itself.
            f"prompts[{index}].prompt is empty: the image shows what the model and its adapters draw without a prompt"
            for index, item in enumerate(items)
            if not item.prompt.strip()
        ),
        *_first(
            f"prompts[{index}].prompt contains [trigger], but the request has no trigger_word: it stays as written"
            for index, item in enumerate(items)
            if TRIGGER in item.prompt
        ),
        *_first(
            f"prompts[{index}].prompt is rendered with {flags.text!r} as words: the trainer's sample prompts may end "
            f"with flags, but a request has fields; remove them from the prompt{flags.advice}"
            for index, item in enumerate(items)
            if (flags := find_flags(item.prompt)) is not None
        ),
    ]


def _item(
    request: InferenceRequest, prompt: PromptItem, index: int, *, model: Model, adapters: Sequence[AdapterRef]
) -> ItemSpec:
    preset = _preset(request, model)
    sigmas, steps = _schedule(prompt, preset, model)
    width = _value_or(prompt.width, model.default_width)
    height = _value_or(prompt.height, model.default_height)
    return ItemSpec(
        model=model.id,
        prompt=_with_trigger(prompt.prompt, prompt.trigger_word or request.trigger_word, index),
        neg=(prompt.neg or "") if model.uses_negative_prompt else "",
        width=_floor(width, model.resolution_divisor),
        height=_floor(height, model.resolution_divisor),
        requested_width=width,
        requested_height=height,
        seed=_seed(prompt.seed, index, model),
        num_inference_steps=steps,
        guidance_scale=_value_or(
            prompt.guidance_scale,
            _value_or(preset.guidance_scale if preset else None, model.default_guidance_scale),
        ),
        adapters=tuple(adapters),
        output_format=request.output_format,
        engine=request.engine,
        adapter_mode=request.adapter_mode,
        sigmas=sigmas,
    )


def _preset(request: InferenceRequest, model: Model) -> Preset | None:
    return None if request.preset is None else model.find_preset(request.preset)


def _schedule(prompt: PromptItem, preset: Preset | None, model: Model) -> tuple[tuple[float, ...], int]:
    """Return the noise levels of an image, empty for the trainer's, and the number of its steps."""
    # Levels and steps are one choice: a prompt that gives either takes neither from the preset.
    given = preset if preset is not None and prompt.sigmas is None and prompt.sample_steps is None else prompt
    sigmas = tuple(given.sigmas or ())
    return sigmas, len(sigmas) or _value_or(given.sample_steps, model.default_steps)


def _with_trigger(prompt: str, trigger_word: str | None, index: int) -> str:
    if not trigger_word:
        return prompt
    # Counted before the text is built: a small request could otherwise produce gigabytes of text.
    length = len(prompt) + prompt.count(TRIGGER) * (len(trigger_word) - len(TRIGGER))
    if length > MAX_TEXT:
        raise InvalidRequest(
            f"the prompt has {length} characters with its trigger word filled in; use at most {MAX_TEXT}",
            field=f"prompts[{index}].prompt",
        )
    return prompt.replace(TRIGGER, trigger_word)


def _floor(pixels: int, divisor: int) -> int:
    return pixels // divisor * divisor


def _seed(seed: int | None, index: int, model: Model) -> int:
    if seed is None:
        return model.default_seed + index
    return secrets.randbelow(MAX_RANDOM_SEED) if seed == -1 else seed


def _ignored_fields(request: InferenceRequest, model: Model) -> list[str]:
    warnings = []
    if request.hf_token is not None:
        warnings.append("hf_token is ignored and was not stored: workers use their own token")
    for name in ("kv_cache", "match_target_res"):
        if getattr(request, name) is not None:
            warnings.append(f"{name} is ignored: {model.id} does not use it")
    for name in ("sampler", "num_frames", "fps", "resolution"):
        warnings += _first(
            f"prompts[{index}].{name} is ignored: {model.id} does not use it"
            for index, prompt in enumerate(request.prompts)
            if getattr(prompt, name) is not None
        )
    if not model.uses_negative_prompt:
        warnings += _first(
            f"prompts[{index}].neg is ignored: {model.id} is guidance-distilled and has no negative prompt"
            for index, prompt in enumerate(request.prompts)
            if prompt.neg
        )
    return warnings


def _missing_adapter(request: InferenceRequest, model: Model) -> list[str]:
    preset = _preset(request, model)
    if preset is None or preset.adapter is None or request.loras:
        return []
    return [
        f"preset {preset.name!r} is made for the adapter {preset.adapter}, but the request has no adapters; add it to "
        "loras"
    ]


def _distilled_settings(items: Sequence[ItemSpec], model: Model) -> list[str]:
    """Describe steps and guidance for which a step-distilled model was not made."""
    if model.distilled_from is None:
        return []
    # Rendered as asked, as the trainer does: some adapters look better with a few steps more.
    return [
        *_first(
            f"prompts[{index}].{item.steps_field} {'has' if item.sigmas else 'is'} {item.num_inference_steps}, but "
            f"{model.id} is distilled to {model.default_steps}: more take time and rarely help; leave it out, or "
            f"request {model.distilled_from}"
            for index, item in enumerate(items)
            if item.num_inference_steps > model.default_steps
        ),
        *_first(
            f"prompts[{index}].guidance_scale is {item.guidance_scale:g}, but {model.id} is distilled to work without "
            f"guidance: more than 1 doubles the time and oversaturates images; leave it out, or request "
            f"{model.distilled_from}"
            for index, item in enumerate(items)
            if item.guidance_scale > 1
        ),
    ]


def _first(warnings: Iterable[str]) -> list[str]:
    # One warning, even if a thousand prompts repeat the mistake.
    return list(warnings)[:1]


def _value_or(value: T | None, default: T) -> T:
    # Not `value or default`: 0 is a guidance scale.
    return default if value is None else value
