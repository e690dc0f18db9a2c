"""The API's answers as typed, frozen objects.

Fields have the names of the HTTP API, whose reference describes them. A field that this version does not know is kept
and does no harm, so that an older client works with a newer API.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

#: A job or an image in one of these states never changes again.
FINAL_STATES = frozenset({"succeeded", "failed", "canceled"})


class Answer(BaseModel):
    """A part of an answer's body."""

    model_config = ConfigDict(frozen=True, extra="allow")


class OfRequest(Answer):
    """An answer about a job."""

    request_id: str

    #: What messages call it; the field with its id begins with this word.
    kind: ClassVar[str] = "request"

    @property
    def id(self) -> str:
        return self.request_id


class OfSweep(Answer):
    """An answer about a sweep."""

    sweep_id: str

    kind: ClassVar[str] = "sweep"

    @property
    def id(self) -> str:
        return self.sweep_id


class Job(OfRequest):
    """An accepted job."""

    status: str = "queued"
    status_url: str
    result_url: str
    created_at: str
    warnings: tuple[str, ...] = ()


class ImagesJob(Answer):
    """The job of a request in OpenAI's form."""

    request_id: str


class ReplaySample(Answer):
    """The image that reproduces one sample of a training config."""

    request_id: str
    index: int


class Replay(Answer):
    """The accepted jobs of a training config: one for each adapter strength."""

    requests: tuple[Job, ...]
    samples: tuple[ReplaySample, ...]
    warnings: tuple[str, ...] = ()


class Progress(Answer):
    """How far a running image is."""

    stage: str
    step: int
    steps: int


class ImageError(Answer):
    """Why an image failed."""

    code: str
    message: str
    retryable: bool = False


class ItemStatus(Answer):
    """The state of one image."""

    index: int
    status: str
    attempt: int = 0
    progress: Progress | None = None
    error: ImageError | None = None


class WebhookStatus(Answer):
    """Delivery of the message to the request's `webhook_url`; `error` says why the last attempt failed."""

    state: str
    attempts: int = 0
    error: str = ""
    items_waiting: int = 0
    items_failed: int = 0
    items_error: str = ""


class Status(OfRequest):
    """The state of a job and of each of its images."""

    status: str
    model: str
    cancel_requested: bool = False
    queue_position: int | None = None
    eta_s: float | None = None
    eta_range_s: tuple[float, float] | None = None
    progress: float
    items: tuple[ItemStatus, ...]
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    deadline_at: str | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    webhook: WebhookStatus | None = None
    sweep_id: str | None = None

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.items)

    @property
    def has_ended(self) -> bool:
        return self.status in FINAL_STATES

    def count(self, status: str) -> int:
        """Return the number of images in a state."""
        return sum(item.status == status for item in self.items)


class JobLine(Answer):
    """One job in the listing; `items` counts its images by state."""

    request_id: str
    status: str
    model: str
    items: dict[str, int]
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None


LineT = TypeVar("LineT", bound=Answer)


class Page(Answer, Generic[LineT]):
    """One page of a listing; it may be short or empty although more follow."""

    data: tuple[LineT, ...]
    has_more: bool
    next_cursor: str | None


class AdapterReport(Answer):
    """What one adapter changed in the base model."""

    path: str
    sha256: str
    multiplier: float
    ranks: tuple[int, ...] = ()
    scale_range: tuple[float, float] | None = None
    scale_sources: tuple[str, ...] = ()
    layers_touched: int
    layers_total: int
    ignored: dict[str, int] = {}


class ReferenceReport(Answer):
    """One reference image of an image, with the size that the model got."""

    slot: int
    sha256: str
    width: int
    height: int
    # Empty from a service of an earlier version.
    url: str = ""

    @property
    def path(self) -> str:
        """The text that names it in a request: in `ctrl_img`, or `ctrl_img_2` and `_3` for these slots."""
        return f"upload:{self.sha256}"


class PipelineReport(Answer):
    """The software and the device that rendered an image."""

    engine: str
    precision: str
    device: str
    change: str


class TokenReport(Answer):
    """Lengths of an image's prompts in tokens; the model reads the first `limit`."""

    prompt: int
    neg: int | None = None
    limit: int


class ImageInfo(Answer):
    """One finished image and the parameters that made it."""

    index: int
    format: str
    width: int
    height: int
    requested_width: int | None = None
    requested_height: int | None = None
    seed: int | None = None
    prompt: str | None = None
    sample_steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_scale: float | None = None
    preset: str | None = None
    url: str
    url_expires_at: str
    # None for images of earlier versions.
    thumbnail_url: str | None = None
    sha256: str
    size_bytes: int
    adapters: tuple[AdapterReport, ...] = ()
    references: tuple[ReferenceReport, ...] = ()
    tokens: TokenReport | None = None
    pipeline: PipelineReport
    timings: dict[str, float] = {}
    warnings: tuple[str, ...] = ()

    _client: Any = PrivateAttr(None)
    _request_id: str = PrivateAttr("")

    @property
    def request_id(self) -> str:
        """The job that rendered the image."""
        return self._request_id

    def bind(self, client: object, *, request_id: str) -> None:
        """Name the client that downloads the image, and its job."""
        self._client, self._request_id = client, request_id


ImageT = TypeVar("ImageT", bound=ImageInfo)


class Outputs(Answer, Generic[ImageT]):
    images: tuple[ImageT, ...]


class ItemFailure(ImageError):
    """Why one image is missing."""

    index: int


class Result(Answer, Generic[ImageT]):
    """A job's images. A failed or canceled job keeps the images that it finished."""

    request_id: str
    status: str
    outputs: Outputs[ImageT] | None = None
    error: str | None = None
    errors: tuple[ItemFailure, ...] = ()
    created_at: str
    finished_at: str | None = None
    metadata: dict[str, Any] = {}

    @property
    def images(self) -> tuple[ImageT, ...]:
        """The images that are finished so far, in the order of their index."""
        return self.outputs.images if self.outputs else ()


class SweepJob(Answer):
    """One job of a sweep: images with the same adapters; `multiplier` is None for the base model."""

    request_id: str
    checkpoint: str | None = None
    multiplier: float | None = None


class SweepJobStatus(SweepJob):
    """The state of one job of a sweep."""

    status: str


class Sweep(OfSweep):
    """An accepted sweep."""

    status: str = "queued"
    images: int
    jobs: tuple[SweepJob, ...]
    status_url: str
    result_url: str
    cancel_url: str
    created_at: str
    warnings: tuple[str, ...] = ()


class SweepEstimate(Answer):
    """What a sweep would take; what is not known yet is None."""

    images: int
    jobs: int
    adapter_lists: int
    pixel_steps: int
    megapixel_steps: float
    gpu_s: float | None = None
    eta_s: float | None = None
    eta_range_s: tuple[float, float] | None = None
    price: str | None = None
    currency: str | None = None


class SweepLine(OfSweep):
    """One sweep in the listing; `counts` has its images by state."""

    status: str
    model: str
    images: int
    counts: dict[str, int]
    progress: float
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in FINAL_STATES

    def count(self, status: str) -> int:
        """Return the number of images in a state."""
        return self.counts.get(status, 0)


class SweepStatus(SweepLine):
    """The state of a sweep and of each of its jobs."""

    eta_s: float | None = None
    eta_range_s: tuple[float, float] | None = None
    jobs: tuple[SweepJobStatus, ...]
    warnings: tuple[str, ...] = ()


class SweepAxis(Answer):
    """One axis of a sweep, with the values that its images have."""

    name: str
    values: tuple[str | float | int | None, ...]


class SweepCell(Answer, Generic[ImageT]):
    """One image of a sweep, and its values of the axes; `image` is None while it is not finished."""

    checkpoint: str | None = None
    multiplier: float | None = None
    seed: int
    prompt: int
    size: str
    steps: int
    guidance_scale: float
    request_id: str
    index: int
    status: str
    image: ImageT | None = None
    error: ImageError | None = None


class SweepPage(Answer, Generic[ImageT]):
    """One page of a sweep's images."""

    sweep_id: str
    status: str
    model: str
    axes: tuple[SweepAxis, ...]
    cells: tuple[SweepCell[ImageT], ...]
    has_more: bool
    next_cursor: str | None


class SweepResult(Answer, Generic[ImageT]):
    """All images of a sweep, finished or not; the last axis of the order, the seed, varies fastest."""

    sweep_id: str
    status: str
    model: str
    axes: tuple[SweepAxis, ...]
    cells: tuple[SweepCell[ImageT], ...]

    @property
    def images(self) -> tuple[ImageT, ...]:
        """The images that are finished so far."""
        return tuple(cell.image for cell in self.cells if cell.image is not None)


class Preset(Answer):
    """Values by name, for what the prompts of a request leave open; None for those that it does not give."""

    name: str
    title: str
    sigmas: tuple[float, ...] | None = None
    sample_steps: int | None = None
    guidance_scale: float | None = None
    adapter: str | None = None


class Model(Answer):
    """One model, its defaults and the live workers that serve it."""

    id: str
    title: str
    base_model: str
    default_steps: int
    default_guidance_scale: float
    default_seed: int
    default_width: int
    default_height: int
    distilled_from: str | None = None
    presets: tuple[Preset, ...] = ()
    license: str
    slots: int
    engines: dict[str, int] = {}


class Limits(Answer):
    """Limits of one submit, which the API's operator sets."""

    max_prompts: int = 1000
    max_sweep_images: int = 5000
    max_sweep_jobs: int = 500
    max_body_bytes: int = 4 * 1024**2
    max_values: int | None = None
    max_reference_images: int = 100
    max_reference_bytes: int = 32 * 1024**2
    max_prompt_characters: int = 10_000
    max_prompt_tokens: int = 512


class ModelList(Answer):
    """All models that jobs can name."""

    models: tuple[Model, ...]
    limits: Limits = Limits()


class BlockLayers(Answer):
    """Layers of one type of block that an adapter updates; `matched` of them are in the base model."""

    layers: int
    matched: int | None = None


class Adapter(Answer):
    """One adapter file, as its header describes it; `refused` says why a job cannot use it."""

    path: str
    model: str
    sha256: str | None
    size_bytes: int
    refused: str | None = None
    must_ignore: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    trainer: str | None = None
    kind: str | None = None
    ranks: tuple[int, ...] = ()
    scale_range: tuple[float, float] | None = None
    scale_sources: tuple[str, ...] = ()
    dtypes: dict[str, int] = {}
    blocks: dict[str, BlockLayers] = {}
    layers: int
    matched: int | None = None
    unmatched: tuple[str, ...] = ()
    base_model_version: str | None = None
    name: str | None = None
    step: int | None = None
    trigger: str | None = None


class AdapterFile(Answer):
    """One file under the adapter root, or one that was uploaded; it has not been read."""

    path: str
    size_bytes: int
    modified_at: str
    sha256: str | None = None


class UploadedAdapter(Answer):
    """A file that was uploaded; `path` names it in a request."""

    name: str
    path: str
    sha256: str
    size_bytes: int
    uploaded_at: str
    kind: str
    ranks: tuple[int, ...]
    layers: int
    must_ignore: tuple[str, ...]


class UploadedImage(Answer):
    """A reference image that was uploaded; `path` names it in a request."""

    path: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    effective_width: int
    effective_height: int
    warnings: tuple[str, ...] = ()


class UsageAmounts(Answer):
    """What was used; `cost` is a decimal number, if the operator has set prices."""

    images: int
    megapixel_steps: float
    gpu_s: float
    wasted_gpu_s: float
    cost: str | None = None


class UsageLine(UsageAmounts):
    """What one group used; the others of its five columns are None."""

    day: str | None = None
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    adapter: str | None = None


class Usage(Answer):
    """What was used from the first to the last day."""

    first_day: str
    last_day: str
    group_by: tuple[str, ...]
    currency: str | None = None
    data: tuple[UsageLine, ...]
    total: UsageAmounts


class SlotItem(Answer):
    """The image that a slot renders, or stores if it renders none."""

    request_id: str
    index: int
    tenant: str
    adapters: str
    attempt: int
    stage: str | None = None
    step: int = 0
    steps: int | None = None
    started_at: str


class Slot(Answer):
    """One live worker; the adapters that it has merged and its image are None if another tenant's."""

    name: str
    model: str
    state: str
    device: str
    precision: str
    engines: tuple[str, ...]
    features: tuple[str, ...] = ()
    memory_bytes: int | None = None
    gpu_memory_used_bytes: int | None = None
    gpu_utilization: float | None = None
    corrupted: int = 0
    adapters: str | None = None
    item: SlotItem | None = None


class QueueLine(Answer):
    """Images of one tenant; `adapters` is None in the line that sums up those whose adapters are not known."""

    tenant: str
    model: str
    engine: str
    adapters: str | None = None
    queued: int
    running: int


class Queue(Answer):
    """How many images wait and run; `data` has the lines with most waiting images first."""

    queued: int
    running: int
    images_per_minute: float
    slots: int
    slot_states: dict[str, int]
    data: tuple[QueueLine, ...]


class DeletedUploads(Answer):
    """The paths of the files that a call deleted."""

    deleted: tuple[str, ...]
