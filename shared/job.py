"""The vocabulary that API and worker share: jobs, items, and the results of items.

A job is one accepted request. An item is one image of a job: the unit that is queued, leased, retried and finished. All
values that affect an item's pixels are fixed when the job is accepted, so a re-run gives the same image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import combinations
from types import MappingProxyType
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

ImageFormat = Literal["png", "jpeg", "webp"]
Decode = Literal["whole", "tiled"]

#: `exact` is this project's code, equal to AI Toolkit's to the bit; `fast` trades that for speed; `ai-toolkit` runs
#: AI Toolkit's own code from a checkout.
Engine = Literal["exact", "ai-toolkit", "fast"]
# Its items wait in a pool with the bare name of their model.
DEFAULT_ENGINE: Engine = "exact"
ENGINES: tuple[Engine, ...] = get_args(Engine)

#: `merged` adds adapters to the weights; `live` runs them unmerged, as AI Toolkit does for some previews.
AdapterMode = Literal["merged", "live"]

#: A part of an adapter file, other than the transformer's, that a request may leave out.
AdapterPart = Literal["text_encoder"]
ADAPTER_PARTS: tuple[AdapterPart, ...] = get_args(AdapterPart)

#: What an item may require of a worker beyond its model and engine. `merged`: adapters can be merged into its weights.
#: `references`: reference images can be rendered. `sigmas`: noise levels can be given. Earlier versions refuse both.
#: `large`: no live worker that offers the rest has more memory; the ledger requires it for an item that did not fit.
Feature = Literal["merged", "references", "sigmas", "large"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
# Features that each worker with the named one has too, so that no pool needs both: a claim looks at every pool.
_IMPLIED_FEATURES: Mapping[Feature, frozenset[Feature]] = MappingProxyType({"sigmas": frozenset({"references"})})
# `large` is the last feature, so it ends the name of a pool.
_LARGE_SUFFIX = "+large"
#: The engines that take noise levels from the request. AI Toolkit's pipeline has no parameter for them.
SIGMAS_ENGINES: frozenset[Engine] = frozenset({"exact", "fast"})

#: The pools that one leader audits. Each kind but `plain` has the name of the newest feature of its pools, which a
#: leader of an earlier version does not know.
AuditKind = Literal["plain", "large", "references", "sigmas"]
AUDIT_KINDS: tuple[AuditKind, ...] = get_args(AuditKind)
# An item that requires only what every worker with its engine can do waits in the engine's plain pool, from which
# workers of earlier versions claim too. `exact` also runs on qfloat8 weights, into which nothing can be merged.
ENGINE_FEATURES: Mapping[Engine, frozenset[Feature]] = MappingProxyType(
    {"exact": frozenset(), "ai-toolkit": frozenset({"merged"}), "fast": frozenset({"merged"})}
)


class State(StrEnum):
    """State of an item, and of a job as derived from its items."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


# An item in one of these states never changes again: the ledger's scripts ignore late writes.
TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})


#: The messages that a webhook may receive; `request.*` stands for those about the end of the job.
WebhookEvent = Literal[
    "request.*", "request.succeeded", "request.failed", "request.canceled", "item.succeeded", "item.failed"
]


class _Record(BaseModel):
    """A value that is stored in Redis as JSON; a field that this version does not know makes it unreadable."""

    # A worker that ignored a field of a newer API would render another image than the caller asked for.
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Report(_Record):
    """A value that is stored in Redis as JSON and shown to people; fields of a newer version are dropped."""

    # Nothing is rendered from a report, so an unknown field does no harm.
    model_config = ConfigDict(extra="ignore")


class AdapterRef(_Record):
    """One adapter of an item, in merge order.

    Attributes:
        path: path relative to the adapter root, or the address of a remote file; the file there may change.
        sha256: sha256 of the file's bytes when the job was accepted; empty for a remote file that states none.
        multiplier: the caller's strength, -2 to 2; 0 is the base model, 1 as trained.
        pin: for a remote file, the text of the `shared.sources.remote_file.Pin` under which it had these bytes.
        ignore: parts of the file that are left out.
        peft_config: what PEFT's config next to the file stated when the job was accepted, as
            `shared.adapters.peft_folder.compact_config` writes it; empty if it decides nothing.
    """

    path: str
    sha256: str
    size_bytes: int
    multiplier: float
    # Workers of earlier versions run jobs without these fields, which are left out of the JSON, and refuse the others.
    pin: str = Field("", exclude_if=lambda text: not text)
    ignore: tuple[AdapterPart, ...] = Field((), exclude_if=lambda parts: not parts)
    peft_config: str = Field("", exclude_if=lambda text: not text)

    @property
    def update_key(self) -> str:
        """Identity of the update that the file gives at a multiplier of 1: its bytes, and how they are read."""
        config = f"+{hashlib.sha256(self.peft_config.encode()).hexdigest()[:16]}" if self.peft_config else ""
        file = self.sha256 or "pin-" + hashlib.sha256(f"{self.path}\n{self.pin}".encode()).hexdigest()
        return "".join([file, *(f"-{part}" for part in self.ignore), config])


class ReferenceRef(_Record):
    """One reference image of an item, AI Toolkit's control image.

    Attributes:
        slot: 1 to 3; the images are used in the order of their slots.
        sha256: sha256 of the file's bytes, which the object store holds under `shared.references.reference_key`.
    """

    slot: int = Field(ge=1, le=3)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ItemSpec(_Record):
    """All values that determine one image.

    Attributes:
        width: effective width in pixels: a multiple of the model's divisor.
        requested_width: width in the caller's request.
        seed: resolved seed, 0 or more.
        neg: negative prompt; only models with classifier-free guidance use it.
        adapter_mode: None selects the mode by the worker's precision: merged, or live on float8 weights.
        num_inference_steps: the number of `sigmas`, if these are given.
        references: in the order of their slots, which differ.
        sigmas: noise level at the beginning of each step, strictly decreasing; empty for the trainer's schedule.
    """

    model: str
    prompt: str
    neg: str
    width: int
    height: int
    requested_width: int
    requested_height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    adapters: tuple[AdapterRef, ...]
    output_format: ImageFormat
    # Fields of later versions have defaults, so that specs that an earlier version queued still run.
    engine: Engine = DEFAULT_ENGINE
    adapter_mode: AdapterMode | None = None
    # Workers of earlier versions run items without these fields, which are left out of the JSON, and refuse the others.
    references: tuple[ReferenceRef, ...] = Field((), exclude_if=lambda references: not references)
    sigmas: tuple[float, ...] = Field((), exclude_if=lambda sigmas: not sigmas)

    @property
    def features(self) -> tuple[Feature, ...]:
        """What the item requires of a worker beyond its model and engine."""
        required: dict[Feature, bool] = {
            "merged": bool(self.adapters) and self.adapter_mode == "merged",
            "references": bool(self.references),
            "sigmas": bool(self.sigmas),
        }
        return tuple(name for name, is_required in required.items() if is_required)

    @property
    def steps_field(self) -> str:
        """The field of a prompt that states the number of steps."""
        return "sigmas" if self.sigmas else "sample_steps"

    @property
    def pool(self) -> str:
        """The pool of a job with this item alone."""
        return pool(self.model, self.engine, self.features)

    @property
    def adapter_key(self) -> str:
        """Identity of the adapters that this item needs; a worker whose warm key is the same needs no swap."""
        return adapter_key(self.adapters, self.adapter_mode)


def pool(model: str, engine: Engine, features: Iterable[Feature] = ()) -> str:
    """Return the name of the pool of the items that require this model, engine and features of a worker."""
    # Redis keys contain these names, so they must not change.
    asked = set(features)
    required = asked - ENGINE_FEATURES[engine].union(*(_IMPLIED_FEATURES.get(name, frozenset()) for name in asked))
    parts = [model, *([] if engine == DEFAULT_ENGINE else [engine]), *(name for name in FEATURES if name in required)]
    return "+".join(parts)


def features_of(items: Iterable[ItemSpec]) -> tuple[Feature, ...]:
    """Return what a worker must offer to run each of these items."""
    required = {feature for item in items for feature in item.features}
    return tuple(name for name in FEATURES if name in required)


def pools(model: str, engines: Iterable[Engine], features: Sequence[Feature]) -> tuple[str, ...]:
    """Return all pools whose items a worker with these engines and features can run."""
    names = (
        pool(model, engine, required)
        for engine in engines
        for size in range(len(features) + 1)
        for required in combinations(features, size)
    )
    # Features that every worker with the engine, or with another feature, has give no pool.
    return tuple(dict.fromkeys(names))


def model_of(pool_name: str) -> str:
    """Return the model of a pool's items."""
    return pool_name.split("+")[0]


def engine_of(pool_name: str) -> Engine:
    """Return the engine of a pool's items."""
    named = set(pool_name.split("+"))
    return next((engine for engine in ENGINES if engine in named), DEFAULT_ENGINE)


def audit_kind(pool_name: str) -> AuditKind:
    """Return the audit that looks after a pool."""
    named = set(pool_name.split("+"))
    return next((kind for kind in reversed(AUDIT_KINDS) if kind in named), "plain")


def is_large(pool_name: str) -> bool:
    """Return whether a pool holds items that did not fit on a device, which the slots with the most memory claim."""
    return pool_name.endswith(_LARGE_SUFFIX)


def large_pool(pool_name: str) -> str:
    """Return the pool in which an item of this pool waits after it did not fit on a device."""
    return pool_name if is_large(pool_name) else pool_name + _LARGE_SUFFIX


def memory_gib(memory_bytes: int) -> int:
    """Round a device's memory to whole GiB, by which devices are compared: drivers differ in the last few MB."""
    return round(memory_bytes / 2**30)


def wake_name(pool_name: str, memory: int) -> str:
    """Return the name under which the slots of a pool with this much memory, in GiB, get their wake-ups."""
    # A smaller slot may not claim a large item, so it must not consume the wake-up for it.
    return f"{pool_name}@{memory}" if is_large(pool_name) else pool_name


def adapter_key(adapters: Iterable[AdapterRef], mode: AdapterMode | None = None) -> str:
    """Return the key of an ordered list of adapters, by update and multiplier; the empty list gives `base`."""
    # repr is the shortest text that parses back to the same float, so equal keys mean equal multipliers.
    names = ",".join(f"{ref.update_key}@{ref.multiplier!r}" for ref in adapters)
    return f"live:{names}" if names and mode == "live" else names or "base"


class SpecReport(_Report):
    """The part of an item's spec that people see; specs of other versions contain it too."""

    prompt: str
    requested_width: int
    requested_height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    # Earlier versions dropped it when the item ended.
    neg: str | None = None
    sigmas: tuple[float, ...] | None = None


class StepsReport(_Report):
    """The part of a canceled item's spec that the ledger keeps."""

    num_inference_steps: int


class AdapterReport(_Report):
    """The effect of one adapter on the transformer; it proves that an image is not the base model's.

    Attributes:
        kind: e.g. `lora`; several kinds in one file are joined, as in `diff+lora`.
        ranks: distinct ranks, ascending; empty for kinds without one.
        scale_range: lowest and highest scale of the layers, which multiplied each update in addition to `multiplier`;
            None in results of earlier versions.
        scale_sources: where the scales were found, as in `shared.adapters.strength.Source`.
        layers_touched: linear layers whose weight the file updates.
        layers_total: linear layers of the base that an adapter of this kind can touch.
        ignored: number of the file's layers that were left out, by part, as the request's `ignore` says.
    """

    path: str
    sha256: str
    multiplier: float
    kind: str
    ranks: tuple[int, ...]
    scale_range: tuple[float, float] | None = None
    scale_sources: tuple[str, ...] = ()
    layers_touched: int
    layers_total: int
    ignored: dict[str, int] = Field({}, exclude_if=lambda parts: not parts)


class ReferenceReport(_Report):
    """One reference image as an item used it.

    Attributes:
        width: in pixels, after the image was scaled and cropped (`shared.references.prepared_size`).
    """

    slot: int
    sha256: str
    width: int
    height: int


class PipelineReport(_Report):
    """The pipeline that rendered an item, and the adapter swap before it.

    Attributes:
        change: `none` when the warm key was already current, `restored` when base weights were restored, `merged`
            when an adapter was merged into base weights, `swapped` for both.
        base_revision: identity of the checkpoint's files.
        drift: for the engine `fast` only: distance of one step from the same step with bfloat16 weights, relative to
            the length of the latter; measured with the base model when the worker started.
        attention_drift: by how much attention in float8 makes `drift` larger; None if attention is in bfloat16.
        decode: `tiled` when the device had no memory for a whole decode; pixels then differ a little.
    """

    engine: str
    precision: str
    base_revision: str
    device: str
    adapter_mode: AdapterMode
    change: Literal["none", "restored", "merged", "swapped"]
    decode: Decode = "whole"
    drift: float | None = None
    attention_drift: float | None = Field(None, exclude_if=lambda drift: drift is None)
    versions: dict[str, str]


class TokenReport(_Report):
    """The lengths of an item's prompts in tokens, counted with the model's chat template and before the cut.

    Attributes:
        neg: None if the negative prompt was not used.
        limit: number of tokens that the model reads; later ones are cut.
    """

    prompt: int
    neg: int | None = None
    limit: int


class ItemResult(_Report):
    """The result of one item, as a worker commits it; `key` names the object that holds the image.

    Attributes:
        tokens: None in results of earlier versions.
        sha256: of the stored file; `size_bytes` is its size.
        timings: seconds by stage: encode_prompt, adapter, denoise, decode, encode_image, upload; fetch, if an adapter
            came from a remote source; fetch_references and encode_references, if the item has references.
        warnings: what the worker found out about the image that may surprise, as sentences.
        references: the reference images, in the order of their slots.
        thumbnail: name of the object next to the image that holds a small copy of it; empty without one.
    """

    key: str
    format: ImageFormat
    content_type: str
    width: int
    height: int
    sha256: str
    size_bytes: int
    timings: dict[str, float]
    # Before `adapters`, the first of the fields that the ledger stores once per job.
    tokens: TokenReport | None = None
    # Workers of earlier versions store none.
    warnings: tuple[str, ...] = ()
    references: tuple[ReferenceReport, ...] = Field((), exclude_if=lambda references: not references)
    # Only the name, because the ledger stores it for each image.
    thumbnail: str = Field("", exclude_if=lambda name: not name)
    adapters: tuple[AdapterReport, ...]
    pipeline: PipelineReport

    @property
    def thumbnail_key(self) -> str | None:
        """Key of the object that holds a small copy of the image; None without one."""
        return f"{self.key.rpartition('/')[0]}/{self.thumbnail}" if self.thumbnail else None


class ItemError(_Report):
    """The reason why an item failed; the traceback is in the worker's log only."""

    code: str
    message: str
    retryable: bool


class Progress(_Report):
    """The progress of a running item.

    Attributes:
        stage: `fetch`, `encode`, `adapter`, `denoise`, `decode` or `upload`.
        step: denoising steps done, of `steps`.
    """

    stage: str
    step: int
    steps: int
