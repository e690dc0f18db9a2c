"""Read-only views of jobs and items, which `shared.ledger.job_reader` fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.job import ItemError, ItemResult, Progress, SpecReport, State
from shared.keys.record import DEFAULT_TENANT


@dataclass(frozen=True)
class ItemView:
    """One item; times in ms since the epoch.

    `spec`, `progress`, `result` and `error` are None while they do not exist yet, or if another version stored them in
    a form that this version cannot read. A canceled item has no `spec` any more.

    Attributes:
        error: why it failed, or that it was canceled because its job's deadline had passed.
        steps: denoising steps that the item asks for, also of a canceled one; None if unknown.
        why: reason of its last claim; None before the first one, or if a worker of an earlier version claimed it.
    """

    index: int
    state: State
    attempt: int
    fence: int
    spec: SpecReport | None
    steps: int | None
    progress: Progress | None
    result: ItemResult | None
    error: ItemError | None
    queued_ms: int
    started_ms: int | None
    finished_ms: int | None
    slot: str | None
    why: str | None = None


@dataclass(frozen=True)
class WebhookView:
    """The delivery of a job's messages.

    Attributes:
        state: of the message about the job's end: `waiting`, `delivered`, `failed`, or `skipped` if none is sent.
        error: why the last attempt failed; empty if no attempt failed.
        items_waiting: number of messages about items that are being sent.
        items_failed: number of those that were given up.
        items_error: why the last attempt of any of them that failed did; empty if none failed.
    """

    state: str
    attempts: int
    error: str
    items_waiting: int = 0
    items_failed: int = 0
    items_error: str = ""


@dataclass(frozen=True)
class EndedItem:
    """One item that succeeded or failed, and what its job's messages state.

    Attributes:
        trace: the `traceparent` of the submit; empty if it is not traced.
    """

    job_id: str
    model: str
    tenant: str
    item: ItemView
    trace: str = ""


@dataclass(frozen=True)
class JobView:
    """One job with its items; times in ms since the epoch.

    Attributes:
        record: JSON that the API stored when it accepted the job.
        queue_position: estimated claims before that of the job's first queued item; None when no item is queued.
        eta_s: rough seconds until the last item ends, from the pace of recent items and the slots that serve the
            item's pool; None while unknown or ended.
        deadline_ms: time from which no item of the job starts; None if it has no deadline.
        trace: the `traceparent` of the submit; empty if it is not traced.
        sweep_id: the sweep of the job; None without one.
    """

    job_id: str
    model: str
    state: State
    cancel_requested: bool
    record: Mapping[str, Any]
    accepted_ms: int
    started_ms: int | None
    finished_ms: int | None
    queue_position: int | None
    eta_s: float | None
    items: tuple[ItemView, ...]
    eta_range_s: tuple[float, float] | None = None
    webhook: WebhookView | None = None
    deadline_ms: int | None = None
    tenant: str = DEFAULT_TENANT
    trace: str = ""
    sweep_id: str | None = None


@dataclass(frozen=True)
class JobSummary:
    """One line of the listing.

    Attributes:
        order: accept order of the job's last item; the listing's cursor.
        counts: items by state.
    """

    job_id: str
    model: str
    state: State
    order: int
    items: int
    counts: Mapping[State, int]
    accepted_ms: int
    started_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True)
class JobPage:
    """A page of the listing.

    Attributes:
        jobs: may be fewer than asked for, even none, while older jobs follow.
        next_before: cursor of the next page; None on the last.
    """

    jobs: tuple[JobSummary, ...]
    next_before: int | None


@dataclass(frozen=True)
class FinishedImage:
    """One finished image in the listing of images.

    Attributes:
        preset: of the job's request; None without one.
        spec: None if another version stored it in a form that this version cannot read.
    """

    job: JobSummary
    tenant: str
    preset: str | None
    index: int
    spec: SpecReport | None
    result: ItemResult


@dataclass(frozen=True)
class ImageCursor:
    """Where a page of images begins: with item `index` of the job with this accept order, or the next older job."""

    order: int
    index: int


@dataclass(frozen=True)
class ImagePage:
    """A page of the listing of images.

    Attributes:
        images: may be fewer than asked for, even none, while more follow.
        next_cursor: None on the last page.
    """

    images: tuple[FinishedImage, ...]
    next_cursor: ImageCursor | None
