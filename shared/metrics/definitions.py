"""The metrics that processes count by themselves and send to the ledger; docs/reference/metrics.md lists all metrics.

A field of the hash `flux2:metrics` is the metric's name and the values of its labels with `|` between them. A histogram
has one field for each of its buckets, which ends in `le=` and the bucket's bound in millionths, and one that ends in
`sum`, in millionths too. A bound may change: what was counted under another one still counts in each larger bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Counter:
    """A number that only rises; Prometheus calls it `flux2_{name}_total`.

    Attributes:
        labels: names; each of their values must come from a short list, because every combination is stored.
        known: values of its only label that have a series from the start: Prometheus sees no rise to the first value.
    """

    name: str
    text: str
    labels: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """A distribution of observed values; Prometheus calls it `flux2_{name}`.

    Attributes:
        labels: as in `Counter`.
        bounds: upper bounds of the buckets, ascending, without the infinite one.
    """

    name: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]


_IMAGE: Final = ("model", "engine")
# From what a [klein] model takes for one step on a fast GPU to what a CPU takes.
_WORK_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_WAIT_S: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0)
_TRANSFER_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
# Calls that wait for a job take up to a minute.
_HTTP_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ENDS: Final = ("drained", "drain_timeout", "fault")
_RATIOS: Final = (0.1, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)

WAIT_SECONDS: Final = Histogram(
    "wait_seconds", "Time from an image's queueing, or requeueing, to its claim.", _IMAGE, _WAIT_S
)
STEP_SECONDS: Final = Histogram(
    "step_seconds",
    "Time of a denoising step, as the average of its image; its count is the number of steps.",
    _IMAGE,
    _WORK_S,
)
ENCODE_SECONDS: Final = Histogram(
    "encode_seconds",
    "Time of encoding prompt and reference images; near 0 if they were prepared while the image before rendered.",
    _IMAGE,
    _WORK_S,
)
DECODE_SECONDS: Final = Histogram("decode_seconds", "Time of decoding latents to an image.", _IMAGE, _WORK_S)
UPLOAD_SECONDS: Final = Histogram("upload_seconds", "Time of storing an image.", _IMAGE, _TRANSFER_S)
SWAP_SECONDS: Final = Histogram(
    "swap_seconds",
    "Time for which an image waited for the swap of its adapters; images whose adapters were merged "
    "already are left out.",
    _IMAGE,
    _WORK_S,
)
FETCH_SECONDS: Final = Histogram(
    "fetch_seconds",
    "Time until an image's remote adapters were on the host; images without remote adapters are left out.",
    _IMAGE,
    _TRANSFER_S,
)
DRIFT_RATIO: Final = Histogram(
    "drift_ratio",
    "Distance of a float8 step from the same step with bfloat16 weights, as its worker measured it when "
    "it started; one value for each image of the engine `fast`.",
    ("model",),
    (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2),
)
GPU_UTILIZATION_RATIO: Final = Histogram(
    "gpu_utilization_ratio",
    "Part of the time in which a GPU ran a kernel; each worker is sampled every 10 s, one of several "
    "GPUs on the first of them.",
    ("model",),
    _RATIOS,
)
GPU_MEMORY_RATIO: Final = Histogram(
    "gpu_memory_ratio", "Used part of a GPU's memory, sampled as the time is.", ("model",), _RATIOS
)
HTTP_SECONDS: Final = Histogram(
    "http_seconds",
    "Time from a call of the API to the end of its answer; calls with `Prefer: wait` and uploads "
    "included; of a stream of events, to its start.",
    ("method", "route"),
    _HTTP_S,
)

ATTEMPT_FAILURES: Final = Counter(
    "attempt_failures", "Attempts at images that ended with an error, by the error's code.", ("code",)
)
CORRUPTED_PARAMETERS: Final = Counter(
    "corrupted_parameters",
    "Base parameters that were not restored to the checkpoint's bits; alert on anything but 0.",
)
WORKER_ENDS: Final = Counter(
    "worker_ends",
    "Worker processes that ended: `drained`, `drain_timeout` (items handed over), `fault`.",
    ("reason",),
    _ENDS,
)
STORAGE_OUTAGES: Final = Counter("storage_outages", "Times at which a worker could store neither an image nor a probe.")
STORAGE_ERRORS: Final = Counter(
    "storage_errors", "Requests to the storage that failed, also those that were repeated.", ("operation",)
)
REDIS_ERRORS: Final = Counter(
    "redis_errors",
    "Calls of the ledger that Redis left `unanswered` or `refused`.",
    ("kind",),
    ("unanswered", "refused"),
)
ADAPTER_FILES: Final = Counter(
    "adapter_files",
    "Adapter files of images by where they were: the adapter `root`, the `cache` of the host, or their "
    "`source`; a file of the next image is looked up early and again when the image begins.",
    ("place",),
    ("root", "cache", "source"),
)
ADAPTER_FETCHED_BYTES: Final = Counter("adapter_fetched_bytes", "Bytes of adapter files that were downloaded.")
HTTP_ANSWERS: Final = Counter(
    "http_answers",
    "Answers of the API; status `0` if the caller disconnected first, route `other` if the API has no such path.",
    ("method", "route", "status"),
)

HISTOGRAMS: Final = (
    WAIT_SECONDS,
    STEP_SECONDS,
    ENCODE_SECONDS,
    DECODE_SECONDS,
    UPLOAD_SECONDS,
    SWAP_SECONDS,
    FETCH_SECONDS,
    DRIFT_RATIO,
    GPU_UTILIZATION_RATIO,
    GPU_MEMORY_RATIO,
    HTTP_SECONDS,
)
COUNTERS: Final = (
    ATTEMPT_FAILURES,
    CORRUPTED_PARAMETERS,
    WORKER_ENDS,
    STORAGE_OUTAGES,
    STORAGE_ERRORS,
    REDIS_ERRORS,
    ADAPTER_FILES,
    ADAPTER_FETCHED_BYTES,
    HTTP_ANSWERS,
)
