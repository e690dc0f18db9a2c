"""Turn a sweep into the requests of its jobs: one for each adapter list, or several if that has many images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Final

from api.schemas.sweep import SweepCheckpoint, SweepRequest
from api.sweeps.axes import Axes, JobPart, SweepRecord, Values
from api.sweeps.labels import checkpoint_labels
from shared.catalog import find_model
from shared.errors import InvalidRequest, KeyForbids, RequestError
from shared.plurals import counted
from shared.request import InferenceRequest, LoraItem, PromptItem
from shared.resolve import resolve_items
from shared.resolved_size import check_resolved_size
from shared.settings import ApiSettings

# Where a message or a field names a part of a job's request, at its beginning.
_PROMPT: Final = re.compile(r"prompts\[(\d+)\](?:\.(\w+))?")
_LORA: Final = re.compile(r"loras\[(\d+)\]")
# The axis that gives a field of a prompt.
_AXIS_OF: Final = {
    "width": "sizes",
    "height": "sizes",
    "sample_steps": "steps",
    "guidance_scale": "guidance_scales",
    "seed": "seeds",
}


@dataclass(frozen=True)
class _AdapterList:
    """The adapters of some jobs; `checkpoint` is the index of their checkpoint, None without one."""

    checkpoint: int | None
    label: str | None
    multiplier: float | None
    loras: list[LoraItem]


@dataclass(frozen=True)
class PlannedJob:
    """The request of one job, and how the sweep names what is in it."""

    request: InferenceRequest
    part: JobPart
    adapters: _AdapterList
    axes: Axes

    def rename(self, text: str) -> str:
        """Return a message, or a field, that begins with a part of the job's request, as the sweep names that part."""
        if found := _PROMPT.match(text):
            return self._name_prompt(int(found[1]), found[2]) + text[found.end() :]
        if found := _LORA.match(text):
            return self._name_lora(int(found[1])) + text[found.end() :]
        return text

    @contextmanager
    def renaming(self) -> Iterator[None]:
        """Name the field in errors about the job's request as the sweep does."""
        try:
            yield
        except (RequestError, KeyForbids) as error:
            if error.field is not None:
                error.field = self.rename(error.field)
            error.args = tuple(self.rename(text) if isinstance(text, str) else text for text in error.args)
            raise

    def _name_prompt(self, index: int, field: str | None) -> str:
        choice = self.axes.choice(self.part.first + index)
        axis = _AXIS_OF.get(field or "")
        value = {
            "sizes": choice.size,
            "steps": choice.steps,
            "guidance_scales": choice.guidance_scale,
            "seeds": choice.seed,
        }.get(axis or "")
        if value is None:
            return f"prompts[{choice.prompt}]" + (f".{field}" if field else "")
        return f"{axis}[{value}]" + (f".{field}" if axis == "sizes" else "")

    def _name_lora(self, index: int) -> str:
        # The checkpoint is the first of the job's adapters. The base model is not an adapter, and has no multiplier.
        if self.adapters.multiplier is None:
            return f"loras[{index}]"
        return f"loras[{index - 1}]" if index else f"checkpoints[{self.adapters.checkpoint}]"


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep, in the order in which they are queued."""

    body: SweepRequest
    axes: Axes
    jobs: tuple[PlannedJob, ...]
    adapter_lists: int

    def record(self, warnings: Sequence[str]) -> SweepRecord:
        """Return what is stored about the sweep."""
        return SweepRecord(
            axes=self.axes,
            jobs=tuple(job.part for job in self.jobs),
            warnings=tuple(warnings),
            preset=self.body.preset,
        )


def plan_sweep(body: SweepRequest, limits: ApiSettings) -> SweepPlan:
    """Plan the jobs of a sweep; no file is read.

    Raises:
        InvalidRequest: the sweep is too large, or a value cannot be used; `field` names it.
        ModelNotFound: see `find_model`.
    """
    model = find_model(body.model)
    _check_values(body)
    check_amount(body, limits)
    lists = _adapter_lists(body)
    per_prompt = _images_per_prompt(body)
    base = InferenceRequest(
        model=body.model,
        prompts=body.prompts,
        loras=[],
        trigger_word=body.trigger_word,
        engine=body.engine,
        adapter_mode=body.adapter_mode,
        preset=body.preset,
        output_format=body.output_format,
        webhook_url=body.webhook_url,
        priority=body.priority,
        deadline_s=body.deadline_s,
    )
    # Before the texts are built. Each image stores its own, in Redis too.
    check_resolved_size([base], max_bytes=limits.max_body_bytes, copies=per_prompt * len(lists), field="prompts")
    # Seeds and defaults are fixed once, so that they are the same for each adapter list.
    items = resolve_items(base, model, [])
    axes = Axes(
        texts=tuple(item.prompt for item in items),
        prompts=tuple(
            Values(
                seed=item.seed,
                width=item.requested_width,
                height=item.requested_height,
                steps=item.num_inference_steps,
                guidance_scale=item.guidance_scale,
            )
            for item in items
        ),
        sizes=tuple((size.width, size.height) for size in body.sizes),
        steps=tuple(body.steps),
        guidance_scales=tuple(body.guidance_scales),
        seeds=tuple(body.seeds),
    )
    prompts = [_prompt(body.prompts, axes, place) for place in range(len(body.prompts) * per_prompt)]
    return SweepPlan(body, axes, tuple(_jobs(base, prompts, lists, axes, most=limits.max_prompts)), len(lists))


def check_amount(body: SweepRequest, limits: ApiSettings) -> None:
    """Refuse a sweep with too many images or jobs, before anything is made of it.

    Raises:
        InvalidRequest: states the product.
    """
    lists = _count_lists(body)
    per_list = len(body.prompts) * _images_per_prompt(body)
    images, jobs = lists * per_list, lists * -(-per_list // limits.max_prompts)
    if images > limits.max_sweep_images:
        raise InvalidRequest(
            f"{_product(body)} = {images:,} images; at most {limits.max_sweep_images:,}: leave out values, or send "
            "several sweeps"
        )
    if jobs > limits.max_sweep_jobs:
        raise InvalidRequest(
            f"{_product(body)} = {jobs:,} jobs, as each combination of checkpoint and multiplier is a job for every "
            f"{counted(limits.max_prompts, 'image', 'images')}; at most {limits.max_sweep_jobs:,}: leave out "
            "checkpoints or multipliers, or send several sweeps"
        )


def _count_lists(body: SweepRequest) -> int:
    files = sum(checkpoint.path is not None for checkpoint in body.checkpoints)
    return files * (len(body.multipliers) or 1) + len(body.checkpoints) - files if body.checkpoints else 1


def _images_per_prompt(body: SweepRequest) -> int:
    return prod(len(axis) or 1 for axis in (body.sizes, body.steps, body.guidance_scales, body.seeds))


def _product(body: SweepRequest) -> str:
    """Return the number of values of each axis, such as `6 checkpoints x 3 multipliers x 2 prompts`."""
    files = sum(checkpoint.path is not None for checkpoint in body.checkpoints)
    adapters = [counted(files, "checkpoint", "checkpoints")] if files else []
    if files and body.multipliers:
        adapters.append(counted(len(body.multipliers), "multiplier", "multipliers"))
    if len(body.checkpoints) > files:
        adapters = [f"({' x '.join(adapters)} + base)" if files else "base"]
    axes: dict[str, Sequence[object]] = {
        "prompt": body.prompts,
        "size": body.sizes,
        "steps": body.steps,
        "guidance scale": body.guidance_scales,
        "seed": body.seeds,
    }
    rest = [
        f"{len(values)} values of steps" if name == "steps" else counted(len(values), name, f"{name}s")
        for name, values in axes.items()
        if values
    ]
    return " x ".join(adapters + rest)


def _check_values(body: SweepRequest) -> None:
    """Refuse what no image could show: values twice, and multipliers of nothing."""
    if body.multipliers and not any(checkpoint.path for checkpoint in body.checkpoints):
        raise InvalidRequest(
            "multipliers are those of checkpoints, and no checkpoint is a file; name one, or give network_multiplier "
            "in loras",
            field="multipliers",
        )
    files = [(checkpoint.path, checkpoint.sha256, tuple(checkpoint.ignore or ())) for checkpoint in body.checkpoints]
    axes: dict[str, Sequence[object]] = {
        "checkpoints": files,
        "multipliers": body.multipliers,
        "seeds": body.seeds,
        "sizes": body.sizes,
        "steps": body.steps,
        "guidance_scales": body.guidance_scales,
    }
    for name, values in axes.items():
        # A dictionary, because a body may have 50,000 values.
        first: dict[object, int] = {}
        for index, value in enumerate(values):
            if first.setdefault(value, index) != index:
                raise InvalidRequest(
                    f"{name}[{index}] is the same as {name}[{first[value]}]; give each value once",
                    field=f"{name}[{index}]",
                )


def _adapter_lists(body: SweepRequest) -> list[_AdapterList]:
    if not body.checkpoints:
        return [_AdapterList(None, None, None, body.loras)]
    labels = checkpoint_labels(body.checkpoints)
    return [
        _AdapterList(index, label, multiplier, [*_own_adapter(checkpoint, multiplier), *body.loras])
        for index, (checkpoint, label) in enumerate(zip(body.checkpoints, labels, strict=True))
        for multiplier in ([None] if checkpoint.path is None else body.multipliers or [1.0])
    ]


def _own_adapter(checkpoint: SweepCheckpoint, multiplier: float | None) -> list[LoraItem]:
    if checkpoint.path is None:
        return []
    return [
        LoraItem(
            path=checkpoint.path, network_multiplier=multiplier, sha256=checkpoint.sha256, ignore=checkpoint.ignore
        )
    ]


def _prompt(prompts: Sequence[PromptItem], axes: Axes, place: int) -> PromptItem:
    """Return the prompt of the image at a place."""
    choice, values = axes.choice(place), axes.values(place)
    given: dict[str, int | float | None] = {"width": values.width, "height": values.height, "seed": values.seed}
    if choice.guidance_scale is not None:
        given["guidance_scale"] = values.guidance_scale
    if choice.steps is not None:
        given |= {"sample_steps": values.steps, "sigmas": None}
    return prompts[choice.prompt].model_copy(update=given)


def _jobs(
    base: InferenceRequest, prompts: Sequence[PromptItem], lists: Sequence[_AdapterList], axes: Axes, *, most: int
) -> Iterator[PlannedJob]:
    for adapters in lists:
        for first in range(0, len(prompts), most):
            chosen = prompts[first : first + most]
            part = JobPart(checkpoint=adapters.label, multiplier=adapters.multiplier, first=first, images=len(chosen))
            yield PlannedJob(base.model_copy(update={"prompts": chosen, "loras": adapters.loras}), part, adapters, axes)
